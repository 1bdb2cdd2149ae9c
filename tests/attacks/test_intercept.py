"""Interception: what a known key points at is altered, and nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from attacks import intercept
from bench import judge, metrics, run, spec
from bench.errors import ConfigError
from tests.helpers import changed, config, snapshots, tiny


@pytest.mark.parametrize("method", ["uchida", "neuralmark", "frequency", "watermas", "tondi"])
def test_interception_alters_what_the_key_points_at_and_nothing_else(marked, method):
    x, model, key = marked(method, "intercept", "attack.epochs=0")
    masks = intercept.pointed(copy.deepcopy(model), x.method, key)
    assert set(masks) <= set(key.where)
    if method == "watermas":
        assert sum(int(m.sum()) for m in masks.values()) == key.n_bits
    if method == "tondi":
        assert sum(int(m.sum()) for m in masks.values()) == key.n_bits * x.method.spread
    if method == "uchida":
        assert all(m.all() for m in masks.values())
    for knob, strength, altered in snapshots(x, model, key):
        shares = changed(model, altered)
        assert {n for n, share in shares.items() if share} <= set(key.where)
        for name, mask in masks.items():
            old, new = model.get_parameter(name), altered.get_parameter(name)
            assert torch.equal(old[~mask], new[~mask])
            if knob == "negated" and strength == 1:
                assert torch.equal(new[mask], -old[mask])
        error, _, ok = judge.judged(x, altered, key)
        if knob == "zeroed":
            zeros = sum(int((altered.get_parameter(name)[mask] == 0).sum()) for name, mask in masks.items())
            assert zeros / sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(strength, abs=0.15)
        if knob == "negated" and strength == 1:
            assert (error, ok) == (1, True)  # all bits inverted: the mark is there
        if knob == "rewritten":
            assert 0.25 < error < 0.75


@pytest.mark.parametrize("method", ["uchida", "neuralmark", "frequency", "watermas"])
def test_a_rewritten_mark_reads_the_attackers_message_at_the_least_cost(marked, method):
    x, model, key = marked(method)
    new = np.random.default_rng(1).integers(0, 2, key.n_bits).astype(bool)
    other = copy.deepcopy(model)
    intercept.rewrite(other, x.method, key, new)
    assert metrics.ber(x.method.extract(other, key, x.task), torch.from_numpy(new)) == 0
    # No change with the same effect is smaller: compare with the pseudo-inverse.
    y = x.method.logits(model, key)
    weights = [w for w in (model.get_parameter(n) for n in key.where) if w.requires_grad]
    rows = []
    for unit in torch.eye(len(y)):
        slopes = torch.autograd.grad(y, weights, unit, retain_graph=True, allow_unused=True)
        full = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, slopes, strict=True)]
        rows.append(torch.cat([g.reshape(-1) for g in full]))
    a = torch.stack(rows).double()
    sign = torch.from_numpy(new).double() * 2 - 1
    least = torch.linalg.pinv(a) @ (sign * y.abs().median() - y).double()
    moved = torch.cat([(other.get_parameter(n) - model.get_parameter(n)).detach().reshape(-1) for n in key.where])
    assert float(moved.norm()) == pytest.approx(float(least.detach().norm()), rel=0.01)


def test_interception_without_a_key_says_so(results):
    rows = run.run(tiny(results, "none", "intercept")).rows
    assert rows[-1].status == "skipped"
    assert "no key" in rows[-1].error
    with pytest.raises(ConfigError, match="need data"):
        spec.build(config("attack=intercept", "attack.data=none").attack, "attack")
    with pytest.raises(ConfigError, match=r"must list key"):
        spec.build(config("attack=intercept", "attack.knows=[weights,method]").attack, "attack")
