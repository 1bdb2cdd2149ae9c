"""Noise on weights."""

from __future__ import annotations

import pytest
import torch

from bench import spec
from bench.errors import ConfigError
from bench.models import weights
from tests.helpers import changed, config, snapshots


def test_noise_has_the_stated_scale_and_only_weights_get_it(marked):
    x, model, _ = marked("uchida", "noise", "attack.sigmas=[0.1,1.0]")
    made = list(snapshots(x, model, None))
    named = weights.weights(model)
    for _, sigma, noisy in made:
        for name, w in named.items():
            added = noisy.get_parameter(name) - w
            assert float((added.std() / w.std()).detach()) == pytest.approx(sigma, rel=0.15)
        assert {n for n, share in changed(model, noisy).items() if share} == set(named)
    a, b = (m.get_parameter("layer4.0.conv1.weight") - model.get_parameter("layer4.0.conv1.weight") for *_, m in made)
    torch.testing.assert_close(10 * a, b, rtol=1e-3, atol=1e-6)  # one draw, two sizes


def test_noise_on_the_marked_layer_touches_no_other(marked):
    x, model, key = marked("uchida", "noise", "attack.scope=marked", "attack.knows=[weights,layer]")
    for *_, noisy in snapshots(x, model, None, where=key.where):
        assert {n for n, share in changed(model, noisy).items() if share} == set(key.where)
    with pytest.raises(ConfigError, match="needs to know the layer"):
        spec.build(config("attack=noise", "attack.scope=marked").attack, "attack")
