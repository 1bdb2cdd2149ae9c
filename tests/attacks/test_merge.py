"""Merging: exact between its ends, and a host is handed over only where there is one."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks.merge import NO_HOST, merged
from bench import run, stages, threat
from bench.errors import ConfigError
from tests.helpers import build_attack, fit, tiny, victim

SITUATION = "method.situation=finetune"


def ran(x, model, *words, host=None):
    it = build_attack("merge", *words)
    for s in it.run(victim(x, model, None, host=host), np.random.default_rng(0), fit(x)):
        yield replace(s, model=copy.deepcopy(s.model))


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_merging_is_linear_and_exact_at_both_ends(marked):
    x, model, _ = marked("uchida", "merge", SITUATION)
    words = ("attack.amounts=[0,0.25,1]", "attack.soups=0", "attack.data=none")
    ends = ran(x, model, *words, host=lambda: stages.public(x))
    zero, quarter, one = (s.model.state_dict() for s in ends)
    own, public = model.state_dict(), stages.public(x).state_dict()
    counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    assert same(zero, own)
    assert same(one, public | counters)
    for name in own.keys() - counters.keys():
        exact = 0.75 * own[name].double() + 0.25 * public[name].double()
        assert torch.equal(quarter[name], exact.float()), name


def test_what_the_host_does_not_have_stays_the_victims(marked):
    x, model, _ = marked("frequency")
    words = ("attack.amounts=[0.5]", "attack.soups=0", "attack.data=none")
    (snapshot,) = ran(x, model, *words, host=lambda: stages.public(x))
    own, after = model.state_dict(), snapshot.model.state_dict()
    added = [name for name in own if name.startswith("watermark.")]
    assert added
    assert all(torch.equal(own[name], after[name]) for name in added)


def test_a_soup_is_the_mean_of_copies_tuned_apart(marked):
    x, model, _ = marked("uchida")
    state = model.state_dict()
    assert same(merged([state] * 5, [1 / 5] * 5), state)  # of identical copies: the copy
    made = list(ran(x, model, "attack.soups=2", "attack.epochs=1"))
    assert [(s.knob, s.skipped) for s in made[:-1]] == [("amount", NO_HOST)] * 4
    assert (made[-1].knob, made[-1].strength, made[-1].skipped) == ("soup", 2, "")
    seeds = np.random.default_rng(0).integers(2**62, size=2).tolist()
    it = build_attack("merge", "attack.epochs=1")
    copies = [
        fit(x).seeded(seed)(copy.deepcopy(model), victim(x, model, None).task, **it.schedule(1)).state_dict()
        for seed in seeds
    ]
    assert not same(*copies)
    for name, value in made[-1].model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, (copies[0][name] + copies[1][name]) / 2, rtol=1e-5, atol=1e-7)
    again = list(ran(x, model, "attack.soups=2", "attack.epochs=1"))[-1].model.state_dict()
    assert same(again, made[-1].model.state_dict())


def test_nothing_to_merge_is_said(marked):
    x, model, _ = marked("uchida")
    it = build_attack("merge", "attack.soups=0", "attack.data=none")
    assert it.skip(victim(x, model, None)) == NO_HOST
    assert it.skip(victim(x, model, None, host=lambda: model)) is None
    assert build_attack("merge").skip(victim(x, model, None)) is None
    with pytest.raises(ConfigError, match=r"attack\.soups needs data"):
        build_attack("merge", "attack.data=none")
    with pytest.raises(ConfigError, match="host"):
        build_attack("merge", "attack.knows=[weights]")


@pytest.mark.parametrize(
    ("method", "attack", "handed"),
    [
        (["uchida", SITUATION], "merge", True),
        (["uchida", "method.situation=scratch"], "merge", False),
        (["uchida", SITUATION], "prune", False),
        (["none"], "merge", False),
    ],
)
def test_the_host_is_handed_over_only_to_whom_knows_it_and_where_the_method_starts_from_one(
    results, method, attack, handed
):
    x = run.prepare(tiny(results, method[0], attack, *method[1:]))
    opened = []
    robbed = threat.stolen(x, stages.fresh(x), None, lambda: opened.append(1))
    assert (robbed.host is not None) == handed
    assert not opened  # only when it is asked for


def test_a_run_has_a_row_for_each_point(results):
    found = run.run(tiny(results, "uchida", "merge", SITUATION)).rows
    assert [(row.knob, row.strength) for row in found[2:]] == [
        *(("amount", a) for a in (0.25, 0.5, 0.75, 0.9)), ("soup", 2)
    ]  # fmt: skip
    assert all(row.status == "ok" for row in found)
