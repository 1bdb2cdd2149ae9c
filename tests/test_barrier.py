"""Networks of box-free watermarking before any training."""

from __future__ import annotations

import torch
from torch import nn

from methods.barrier import Barrier, Discriminator, stretched


def test_an_untrained_barrier_changes_no_pixel():
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 32, 32)).float()
    barrier = Barrier(8, 3, 8).eval()
    assert torch.equal(barrier(pictures), torch.zeros_like(pictures))
    with torch.no_grad():
        barrier.unet.head.weight.normal_()
        assert barrier(pictures).abs().max() > 0


def test_a_mark_is_stretched_to_squares_of_the_picture():
    marks = torch.randint(0, 2, (2, 1, 4, 4)).float()
    big = stretched(marks, torch.zeros(2, 3, 12, 12))
    assert torch.equal(big[:, :, 1::3, 1::3], marks)
    assert torch.equal(nn.functional.adaptive_avg_pool2d(big, 4), marks)


def test_a_discriminators_two_losses_move_one_side_each():
    torch.manual_seed(1)
    judge, real = Discriminator(), torch.rand(4, 3, 16, 16) * 255
    made = (torch.rand(4, 3, 16, 16) * 255).requires_grad_()
    told, lost = judge.losses(real, made)
    told.backward(retain_graph=True)
    assert made.grad is None
    assert all(p.grad is not None for p in judge.parameters())
    judge.zero_grad(set_to_none=True)
    lost.backward()
    assert made.grad is not None
    assert all(p.grad is None for p in judge.parameters())
