"""Pruning: what is zeroed, and that it stays so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from bench.errors import ConfigError
from tests.helpers import build_attack, fit, victim, weights_of


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("scope", ["global", "layer", "marked"])
def test_prune_zeroes_exactly_the_stated_fraction_in_scope(marked, criterion, scope):
    x, model, key = marked("uchida")
    before, state = weights_of(model), copy.deepcopy(model.state_dict())
    it = build_attack(
        "prune", "attack.ratios=[0.25,0.6]", f"attack.criterion={criterion}", f"attack.scope={scope}",
        "attack.knows=[weights,layer]",
    )  # fmt: skip
    for snapshot in it.run(victim(x, model, key, where=key.where), np.random.default_rng(0), fit(x)):
        after = weights_of(snapshot.model)
        zeros = {k: int((after[k] == 0).sum()) for k in after}
        inside = set(key.where) if scope == "marked" else set(after)
        total = sum(after[k].numel() for k in inside)
        if scope == "layer":
            assert all(zeros[k] == round(snapshot.strength * after[k].numel()) for k in inside)
        else:
            assert sum(zeros[k] for k in inside) == round(snapshot.strength * total)
        for k in after:
            kept = after[k] != 0
            assert torch.equal(after[k][kept], before[k][kept])
        if criterion == "magnitude" and scope == "global":
            gone = torch.cat([before[k][after[k] == 0].abs() for k in after])
            left = torch.cat([before[k][after[k] != 0].abs() for k in after])
            assert gone.max() <= left.min()
        others = {k: v for k, v in snapshot.model.state_dict().items() if k not in inside}
        assert all(torch.equal(v, state[k]) for k, v in others.items())


def test_prune_keeps_zeros_through_finetuning(marked):
    x, model, key = marked("uchida")
    it = build_attack("prune", "attack.ratios=[0.5]", "attack.finetune_after=1", "attack.data=attacker")
    (snapshot,) = it.run(victim(x, model, key), np.random.default_rng(0), fit(x))
    after, before = weights_of(snapshot.model), weights_of(model)
    total = sum(w.numel() for w in after.values())
    assert sum(int((w == 0).sum()) for w in after.values()) == pytest.approx(total / 2, abs=1)
    assert any((after[k] != before[k])[after[k] != 0].any() for k in after)  # and it did train


def test_prune_of_the_marked_layer_needs_the_privilege(marked):
    with pytest.raises(ConfigError, match="knows"):
        build_attack("prune", "attack.scope=marked")
    x, model, key = marked("uchida")
    it = build_attack("prune", "attack.scope=marked", "attack.knows=[weights,layer]")
    assert it.skip(victim(x, model, key)) == "no marked layer to prune"
