"""Low rank: how much of each matrix stays, and that it is the best of that rank."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from attacks.lowrank import kept
from bench.errors import ConfigError
from tests.helpers import build_attack, fit, victim, weights_of

ROUNDING = 1e-5  # of the largest singular value: weights are float32


def test_ranks_are_the_share_rounded_up():
    assert [kept(share, 10) for share in (0.05, 0.1, 0.11, 0.3, 0.7, 0.9, 1.0)] == [1, 1, 2, 3, 7, 9, 10]
    assert kept(0.55, 100) == 55  # 0.55 * 100 is above 55 in floats
    assert kept(0.001, 3) == 1


def test_each_weight_has_exactly_that_rank_and_the_least_error(marked):
    x, model, key = marked("uchida")
    before, state = weights_of(model), copy.deepcopy(model.state_dict())
    it = build_attack("lowrank", "attack.shares=[0.9,0.35,0.1]")
    for snapshot in it.run(victim(x, model, key), np.random.default_rng(0), fit(x)):
        after = weights_of(snapshot.model)
        for name, weight in after.items():
            old, new = (w.double().flatten(1) for w in (before[name], weight))
            if name.startswith("fc"):
                assert torch.equal(old, new)
                continue
            rank = int(np.ceil(round(snapshot.strength * min(old.shape), 6)))
            assert torch.linalg.matrix_rank(new, rtol=ROUNDING) == rank, name
            lost = torch.linalg.svdvals(old)[rank:].square().sum().sqrt()
            assert (old - new).norm() == pytest.approx(float(lost), rel=1e-4, abs=1e-5)
        others = {k: v for k, v in snapshot.model.state_dict().items() if k not in after}
        assert all(torch.equal(v, state[k]) for k, v in others.items())


def test_the_full_rank_is_the_victim(marked):
    x, model, key = marked("uchida")
    (snapshot,) = build_attack("lowrank", "attack.shares=[1]").run(
        victim(x, model, key), np.random.default_rng(0), None
    )
    after = weights_of(snapshot.model)
    assert all(torch.allclose(w, after[k], rtol=1e-6, atol=1e-8) for k, w in weights_of(model).items())


def test_finetuning_follows_each_share(marked):
    x, model, key = marked("uchida")
    words = ("lowrank", "attack.shares=[0.3,0.2]")
    plain = build_attack(*words).run(victim(x, model, key), np.random.default_rng(0), fit(x))
    tuned = build_attack(*words, "attack.finetune_after=1", "attack.data=attacker")
    for a, b in zip(plain, tuned.run(victim(x, model, key), np.random.default_rng(0), fit(x)), strict=True):
        close = [(w, weights_of(b.model)[k]) for k, w in weights_of(a.model).items()]
        assert all(not torch.equal(v, w) for v, w in close)
        assert all((v - w).norm() < v.norm() for v, w in close)  # it started from there
    with pytest.raises(ConfigError, match="finetune_after needs data"):
        build_attack("lowrank", "attack.finetune_after=1")
