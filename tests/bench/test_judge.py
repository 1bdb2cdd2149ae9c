"""What the judge says of suspects: inverted, out of order, of strangers, of a host that was trained as long."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks._disguise import disguise, noise
from bench import judge, metrics, run, stages
from bench.models import align, weights
from bench.types import Method, Snapshot, Victim
from tests.helpers import BY_POSITION, facts, first, tiny

UTILITIES = {"utility_host": 99.0, "utility_victim": 99.0}


def judged(x, model, key, suspect, knob="suspect"):
    row = judge.Judge(x, key, UTILITIES, committed=model).row(Snapshot(knob, None, suspect))
    return row, metrics.verdict({**vars(row), "utility_victim": row.utility}, "removal", 5.0)


@pytest.mark.parametrize("method", ["uchida", "neuralmark", "watermas", "tondi"])
def test_a_mark_with_all_bits_inverted_is_there(marked, method):
    """2^-n under the null, and was called removed: weight shifting at 1.5 does no more than this."""
    x, model, key = marked(method)
    suspect = copy.deepcopy(model)
    with torch.no_grad():
        for name in key.where:
            suspect.get_parameter(name).neg_()
    row, verdict = judged(x, model, key, suspect)
    assert (row.ber, row.detected, verdict) == (1.0, True, "inverted")
    assert row.tests == 4  # two tails, two readings


@pytest.mark.parametrize("method", first(BY_POSITION))
def test_a_permuted_and_rescaled_mark_is_read_again(marked, method):
    x, model, key = marked(method)
    suspect, rng = copy.deepcopy(model), np.random.default_rng(1)
    done, _ = disguise(suspect, noise(x.task, rng), 4, rng)
    assert done
    row, verdict = judged(x, model, key, suspect)
    error, how = metrics.reading(vars(row))
    assert error == 0
    assert row.detected
    if how:  # Frequency matches its module's channels by pilots of its own
        assert (how, verdict) == ("aligned", "survived (aligned)")
        assert row.ber > 0.2
        assert "families moved" in row.align
    unaligned = replace(x, verify=replace(x.verify, align="none"))
    row = judge.Judge(unaligned, key, UTILITIES, committed=model).row(Snapshot("suspect", None, suspect))
    assert (row.ber_aligned, row.align) == (None, None)
    assert row.tests == (2 if x.method.signs else 1)
    assert row.detected == (not how)


@pytest.mark.parametrize("method", first(BY_POSITION))
def test_strangers_are_not_detected_in_any_order(marked, method):
    """Twenty untrained networks, which the owner's key and copy are tried on: chance, not more."""
    x, model, key = marked(method)
    one = judge.Judge(x, key, UTILITIES, committed=model)
    errors = []
    for seed in range(20):
        values = one.aligned(x.method.extend(x.task.build(x.model, 1000 + seed), x.task, 1000 + seed))
        assert not values["detected"]
        errors.append(values["ber_aligned"])
    assert np.mean(errors) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(20 * key.n_bits))


def test_an_alignment_that_looks_at_the_mark_is_found_out(monkeypatch, marked):
    """The mutant hands the alignment what the key reads: strangers then come out in the order that fits the key."""
    x, model, key = marked("uchida")
    chosen = copy.deepcopy(model)  # a reference that shows nothing but the mark
    monkeypatch.setattr(align, "hidden", lambda method, net, key: {n: weights.read(net, n) for n in key.where})
    looking = judge.Judge(x, key, UTILITIES, committed=chosen)
    monkeypatch.setattr(judge.align, "prepared", _only_the_mark)
    errors = []
    for seed in range(8):
        values = looking.aligned(x.task.build(x.model, 1000 + seed))
        errors.append(values["ber_aligned"])
    assert np.mean(errors) < 0.5 - 5 * 0.5 / np.sqrt(8 * key.n_bits)


_prepared = align.prepared


def _only_the_mark(model, unread, example):
    nothing = {name: torch.zeros_like(w) for name, w in weights.weights(model).items()}
    return _prepared(model, nothing | dict(unread), example)


def test_a_suspect_of_other_shapes_is_said_to_be_one(marked, results):
    x, model, key = marked("uchida")
    other = run.prepare(tiny(results, "uchida", "none", "model=resnet18"))
    row, verdict = judged(x, model, key, stages.fresh(other))
    assert row.align.startswith("not aligned")
    assert (row.ber, row.ber_aligned, row.detected, verdict) == (0.5, None, False, "removed")


def test_a_tuned_in_mark_is_compared_with_a_host_that_was_trained_as_long(results):
    """A victim of 2E epochs beside a host of E: what more training brought was told as the mark's fidelity."""
    x = run.prepare(tiny(results, "uchida", "none", "method.situation=finetune"))
    host, longer = stages.host(x), stages.baseline(x)
    assert host.path != longer.path
    assert stages.baseline(x).path == longer.path
    rows = run.run(x.cfg).rows
    assert {row.utility_host for row in rows} == {longer["utility"]}
    assert rows[0].utility == longer["utility"]
    distilled = run.prepare(tiny(results, "uchida", "none", "method.situation=distill"))
    assert stages.baseline(distilled).path not in (host.path, longer.path)
    scratch = run.prepare(tiny(results, "uchida", "none"))
    assert stages.baseline(scratch).path == stages.host(scratch).path == host.path
    # Other methods tuned into the same host share it: it holds nothing of a method.
    other = run.prepare(tiny(results, "neuralmark", "none", "method.situation=finetune"))
    assert stages.baseline(other).path == longer.path


def test_the_baseline_is_the_embedding_without_its_penalty(monkeypatch, results):
    """With lambda 0 the victim and the baseline are one network, to the bit."""
    words = ("method.situation=finetune", "method.lambda_=0", "train.epochs=2")
    x = run.prepare(tiny(results, "uchida", "none", *words))
    one, two = (
        stages.load_weights(stages.fresh(x), entry.path) for entry in (stages.baseline(x), stages.mark(x, False))
    )
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_every_point_says_what_it_was_worth_to_its_attacker(results):
    rows = run.run(tiny(results, "uchida", "prune")).rows
    at = {row.knob: row.utility_validation for row in rows}
    assert at["host"] is None
    assert all(0 <= at[knob] <= 100 for knob in ("none", "ratio"))
    again = run.run(tiny(results, "uchida", "prune")).rows
    assert facts(rows) == facts(again)


def test_one_tail_is_enough_where_bits_are_no_signs():
    class Pictures(Method):
        signs = False

    class Key:
        n_bits, message = 64, torch.ones(64, dtype=torch.bool)

    error, p = Pictures.evidence(Pictures.__new__(Pictures), torch.zeros(64), Key)
    assert (error, p) == (1.0, 0.0)


@pytest.mark.parametrize("method", first(BY_POSITION))
def test_units_that_were_added_to_a_marked_network_are_merged(marked, method):
    """Other shapes are no evidence by position: removed for nothing, until the judge makes one of what is one."""
    x, model, key = marked(method, "obfuscate", "attack.amounts=[0.3]")
    robbed = Victim(model, x.method, x.task.view("outsider"))
    (point,) = x.attack.run(robbed, np.random.default_rng(3), None)
    row, verdict = judged(x, model, key, point.model)
    assert (row.ber, row.ber_aligned, verdict) == (0.5, 0.0, "survived (aligned)")
    assert "units merged" in row.align


def test_a_mean_filter_that_hides_its_rows_hides_them_from_no_merging(marked):
    """A strong Uchida mark is most of what each row of its layer holds, and none of what the reference may show."""
    x, model, key = marked("uchida", "obfuscate", "attack.amounts=[0.3]")
    strong, (name,) = copy.deepcopy(model), key.where
    with torch.no_grad():
        w = strong.get_parameter(name)
        w += w.mean(0) * (0.8 * w.std() / w.mean(0).std())  # then most of it, as measured of ResNet-18
    (point,) = x.attack.run(Victim(strong, x.method, x.task.view("outsider")), np.random.default_rng(3), None)
    row, _ = judged(x, strong, key, point.model)
    assert (row.ber, row.ber_aligned) == (0.5, 0.0)
