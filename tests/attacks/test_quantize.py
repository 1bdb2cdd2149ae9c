"""Quantisation: levels, errors, dynamic int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.quantize import quantized
from bench.models import weights
from tests.helpers import build_attack, fit, victim


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_levels_error_and_symmetry(bits, per_channel):
    torch.manual_seed(0)
    w = torch.randn(6, 5, 3, 3)
    q = quantized(w, bits, per_channel)
    groups = list(q) if per_channel else [q]
    assert all(len(g.unique()) <= 2**bits - 1 for g in groups)
    largest = w.abs().amax((1, 2, 3), keepdim=True) if per_channel else w.abs().max()
    step = largest / (2 ** (bits - 1) - 1)
    assert ((q - w).abs() <= step / 2 * (1 + 1e-5)).all()
    torch.testing.assert_close(quantized(-w, bits, per_channel), -q)
    assert quantized(torch.zeros(3, 4), bits, per_channel).abs().max() == 0


def test_quantize_covers_its_grid_and_dynamic_int8(marked):
    x, model, key = marked("uchida")
    snapshots = list(build_attack("quantize").run(victim(x, model, key), np.random.default_rng(0), fit(x)))
    assert [(s.knob, s.strength) for s in snapshots] == [
        *[("bits/tensor", b) for b in (8, 6, 4, 3, 2)],
        *[("bits/channel", b) for b in (8, 6, 4, 3, 2)],
        ("bits/dynamic-int8", 8),
    ]
    last = snapshots[-1]
    assert not last.skipped
    assert x.task.utility(last.model) == pytest.approx(x.task.utility(model), abs=3)
    head = x.task.head(model)
    read = weights.read(last.model, f"{head}.weight")  # dequantised from int8
    exact = model.get_submodule(head).weight
    assert 0 < (read - exact).abs().max() < 2 * exact.abs().max() / 127
