"""The discriminator of pictures."""

from __future__ import annotations

import torch

from bench.models.discriminator import Discriminator


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
