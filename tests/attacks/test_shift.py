"""Shifting filters against their mean."""

from __future__ import annotations

import torch

from bench.models import weights
from tests.helpers import snapshots


def test_shift_moves_filters_against_their_mean(marked):
    x, model, _ = marked("uchida", "shift", "attack.strengths=[0.5,1.0]", "attack.noise=0", "attack.epochs=0")
    for _, strength, shifted in snapshots(x, model, None):
        for name, w in weights.weights(model).items():
            torch.testing.assert_close(shifted.get_parameter(name), w - strength * w.mean(0, keepdim=True))
