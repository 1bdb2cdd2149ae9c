"""Uchida's mathematics: what the paper defines, to float precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import metrics, stages
from bench.errors import ConfigError
from methods.uchida import bound_projection
from tests.helpers import UCHIDA, net, rng


def test_uchida_logits_are_the_papers():
    model, key = net(), UCHIDA.keygen(net(), rng(), None)
    w = model["stage2"].weight.detach().numpy()
    by_hand = np.array([sum(x[i] * w[:, c, r, s].mean() for i, (c, r, s) in enumerate(np.ndindex(16, 3, 3)))
                        for x in key.secret["projection"].numpy()])  # fmt: skip
    assert key.where == ("stage2.weight",)
    np.testing.assert_allclose(UCHIDA.logits(model, key).detach().numpy(), by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("projection", ["direct", "diff"])
def test_uchida_sparse_projections(projection):
    x = replace(UCHIDA, projection=projection).keygen(net(), rng(), None).secret["projection"]
    assert (x == 1).sum(1).eq(1).all()
    assert (x == -1).sum(1).eq(1 if projection == "diff" else 0).all()
    assert (x != 0).sum(0).max() == 1  # distinct columns


def test_uchida_capacity_is_said():
    with pytest.raises(ConfigError, match=r"needs 200 .* carries 144"):
        replace(UCHIDA, n_bits=200).keygen(net(), rng(), None)
    with pytest.raises(ConfigError, match=r"needs 160 .* carries 144"):
        replace(UCHIDA, n_bits=80, projection="diff").keygen(net(), rng(), None)
    assert replace(UCHIDA, n_bits=144, projection="direct").keygen(net(), rng(), None).n_bits == 144


def test_uchida_binding_ties_projection_to_message():
    method = replace(UCHIDA, binding="hash")
    key = method.keygen(net(), rng(), None)
    assert method.accepts(key)
    other = key.message.clone()
    other[0] = ~other[0]
    assert not method.accepts(replace(key, message=other))
    flipped = key.secret["projection"] * torch.where(torch.arange(32) == 3, -1.0, 1.0)[:, None]
    assert not method.accepts(replace(key, secret={**key.secret, "projection": flipped}))
    x = bound_projection(np.zeros(32, np.uint8), np.zeros(64, bool), 5000).numpy()
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs((np.abs(x) < 0.6744898).mean() - 0.5) < 0.005  # the median of |N(0, 1)|


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("situation", ["finetune", "distill"])
def test_situations_start_from_the_host(marked, situation):
    x, model, key = marked("uchida", "none", f"method.situation={situation}")
    assert metrics.ber(x.method.extract(model, key, x.task), key.message) == 0
    host = stages.load_weights(stages.fresh(x), stages.host(x).path)
    start = stages.fresh(x)
    name = key.where[0]
    moved = (model.get_parameter(name) - host.get_parameter(name)).norm()
    assert moved < (model.get_parameter(name) - start.get_parameter(name)).norm()
