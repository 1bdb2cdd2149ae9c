"""What is done to pictures."""

from __future__ import annotations

import pytest
import torch

from bench.data import changes


def test_changes_of_outputs_are_what_they_are_called():
    torch.manual_seed(0)
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 255, (32, 32), mode="bicubic").clamp(0, 255)
    pictures = pictures.round()
    for kind, none in (("noise", 0), ("blur", 0), ("resize", 1), ("shift", 0), ("brightness", 0)):
        assert torch.equal(changes.processed(pictures, kind, none, 0), pictures), kind
    assert torch.equal(changes.processed(pictures, "none", 3, 0), pictures)
    noisy = changes.processed(torch.full((8, 3, 32, 32), 128.0), "noise", 5, 7)
    assert float(noisy.std()) == pytest.approx(5, rel=0.05)
    assert torch.equal(noisy[0], noisy[1])  # equal pictures get equal noise, in any batch
    assert torch.equal(noisy[:2], changes.processed(torch.full((2, 3, 32, 32), 128.0), "noise", 5, 7))
    assert not torch.equal(noisy, changes.processed(torch.full((8, 3, 32, 32), 128.0), "noise", 5, 8))
    a, b = (changes.processed(pictures, "noise", 5, 7) - pictures for pictures in (pictures, pictures.flip(3)))
    assert not torch.equal(a[0], b[0])
    anew = [changes.processed(pictures, "noise", 5, None) for _ in range(2)]
    assert not torch.equal(*anew)
    moved = changes.processed(pictures, "shift", 2, 0)
    assert torch.equal(moved[..., 2:], pictures[..., :-2])
    assert torch.equal(moved[..., 0], pictures[..., 0])
    errors = [(changes.processed(pictures, "jpeg", q, 0) - pictures).square().mean() for q in (95, 50, 10)]
    assert errors[0] < errors[1] < errors[2] < 300
    for kind, strength in (("jpeg", 75), ("noise", 9), ("blur", 1), ("blur", 10), ("resize", 0.5), ("brightness", 200)):
        changed = changes.processed(pictures, kind, strength, 0)
        assert changed.shape == pictures.shape
        assert torch.equal(changed, changed.round().clamp(0, 255))
        assert not torch.equal(changed, pictures)
