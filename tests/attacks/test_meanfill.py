"""Mean-filling: kernels become their means."""

from __future__ import annotations

import pytest
import torch

from attacks import meanfill
from bench import judge
from tests.helpers import changed, snapshots


def test_meanfill_fills_the_stated_fraction_and_costs_a_module_nothing(marked):
    x, model, key = marked("frequency", "meanfill", "attack.fractions=[0.5,1.0]")
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for _, fraction, filled in snapshots(x, model, None):
        w = filled.watermark.conv.weight
        flat = (w - w.mean((2, 3), keepdim=True)).abs().amax((2, 3)) < 1e-6
        assert float(flat.float().mean()) == pytest.approx(fraction, abs=0.05)
        assert {n for n, s in changed(model, filled).items() if s} == {"watermark.conv.weight"}
        # The theorem's other side: what training cannot reach, the function does not need.
        torch.testing.assert_close(filled(images), model(images), rtol=1e-3, atol=1e-4)
    assert not judge.judged(x, filled, key)[2]


def test_meanfill_elsewhere_takes_every_spatial_kernel_and_hurts(marked):
    x, model, _ = marked("uchida", "meanfill", "attack.fractions=[1.0]")
    ((*_, filled),) = snapshots(x, model, None)
    assert all(w.weight.flatten(2).std(2).max() < 1e-6 for w in meanfill.spatial(filled))
    assert x.task.utility(filled) < x.task.utility(model) - 20
