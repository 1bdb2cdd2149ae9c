"""The barrier and its stages before any training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import spec
from methods._barrier import Barrier, stretched
from methods._stages import VISIBLE, Stages
from tests.helpers import config


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


class Eye(nn.Module):
    """An extractor that sees squares which are lighter or darker than middle grey by VISIBLE."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return (pictures.mean(1, keepdim=True) - 127) / (2 * VISIBLE) + 0.5


def first_loss(target: float, fidelity: float) -> float:
    """Of the initial stage, before any step: its squares change every pixel by VISIBLE."""
    words = ("task=restoration", "method=boxfree", f"method.target={target}", f"method.fidelity={fidelity}")
    method = spec.build(config(*words, "method.gan=0").method, "method")
    found = []

    def step(model: nn.Module, task: object, *, loss) -> nn.Module:
        torch.manual_seed(0)
        found.append(loss(model, torch.full((4, 3, 32, 32), 127.0)).item())
        return model

    fit = SimpleNamespace(using=lambda **more: fit if "optimizer" in more else step)
    task = SimpleNamespace(inputs=lambda batch: batch)
    torch.manual_seed(0)
    net = nn.Identity()
    Stages(method, net, Barrier(4, 3, 8), Eye(), task, fit, None).initial()
    return found[0]


def test_a_change_weighs_what_it_is_above_the_bound():
    change = (VISIBLE / 255) ** 2
    at = -10 * math.log10(change)
    due = 0.05  # what one perfect reading counts
    assert first_loss(at - 0.1, 1e6) == first_loss(at - 0.1, 0.0)
    for more in (1.0, 10.0, 70.0):
        above = change - 10 ** (-(at + more) / 10)
        assert first_loss(at + more, 1e6) == pytest.approx(due * 1e6 * above, rel=1e-3)
