"""Claims: criteria on rows made by hand, the files in conf/experiment/claims, and the command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from bench import claims, invariance, metrics, run, terminal, verdicts
from bench.criteria import CRITERIA, decide
from bench.evidence import FAILED, HELD, OPEN, Run, enough, envelope
from bench.types import ConfigError, Row, UserError
from bench.usage import help_text
from tests.conftest import ROOT, TINY, command, config, tiny

N, ALPHA = 256, 1e-9
HOST, VICTIM = 98.0, 97.5


def row(knob="none", strength=None, wrong=0, damage=0.0, accepted=None, host=HOST, n=N, **fixed) -> Row:
    """One row: `wrong` of n bits, `damage` points; `accepted`: whether the attacker's claim was."""
    log10_p = metrics.log10_p(wrong / n, n)
    values = {"run_id": "r", "method": "uchida", "attack": "prune", "model": "resnet18", "data": "digits", "seed": 0}
    values |= {"n_bits": n, "ber": wrong / n, "log10_p": log10_p, "detected": metrics.is_detected(log10_p, ALPHA)}
    values |= {"utility": VICTIM - damage, "utility_victim": VICTIM, "utility_host": host, "utility_name": "top1"}
    if accepted is not None:
        values |= {"claim_ber": 0.0, "claim_detected": accepted}
    return Row(**{"knob": knob, "strength": strength, **values, **fixed})


def one(points, seed=0, victim=None, host=None, options=None, **fixed) -> Run:
    """A run: control, victim, and points as (knob, strength, wrong bits, damage[, claim accepted])."""
    rows = [row("host", wrong=N // 2, **(host or {})), row(**(victim or {})), *(row(*point) for point in points)]
    verify = {"alpha": ALPHA, "max_damage": 5.0}
    cfg = OmegaConf.create({"verify": verify, "seed": seed, "method": options or {}, "data": {}, "model": {}})
    return Run(cfg, [replace(r, seed=seed, run_id=f"r{seed}", **fixed) for r in rows])


def seeds(points, count=3, **fixed) -> list[Run]:
    """The same run with several seeds; a wrong-bit count that is a list has a value for each."""

    def at(value, seed):
        return value[seed] if isinstance(value, list) else value

    return [one([[at(v, s) for v in p] for p in points], s, **fixed) for s in range(count)]


def variants(better, worse, key="pool", values=(True, False), **fixed) -> list[Run]:
    return [r for v, p in zip(values, (better, worse), strict=True) for r in seeds(p, options={key: v}, **fixed)]


def overwritten(neuralmark, uchida, claim=True) -> list[Run]:
    points = ([("factor", 1, w, 1.0, claim)] for w in (neuralmark, uchida))
    names = ("neuralmark", "uchida")
    return [r for m, p in zip(names, points, strict=True) for r in seeds(p, method=m, attack="overwrite")]


def forged(neuralmark, uchida, marks=6, kinds=9) -> list[Run]:
    """`neuralmark` and `uchida`: how many of their marks are forged, each by one of so many kinds of claims."""
    return [
        r
        for m, count in (("neuralmark", neuralmark), ("uchida", uchida))
        for r in seeds(
            [("tries", i, 0, 0.0, [i == 0 and s < count for s in range(marks)]) for i in range(kinds)],
            marks,
            method=m,
            attack="forge",
        )
    ]


def rounds(*wrong) -> list[Run]:
    """Wrong bits at 0, 1, 2 and 4 rounds, each a list over seeds."""
    levels = zip((0, 1, 2, 4), wrong, strict=True)
    return [r for level, w in levels for r in seeds([("factor", 1, w, 0.0)], options={"rounds": level})]


def hurt(*fidelity) -> list[Run]:
    return [one([], s, victim={"host": VICTIM + f}) for s, f in enumerate(fidelity)]


def families(*wrong) -> list[Run]:
    """Twelve marks on four networks; the first have so many wrong bits."""
    wrong = [*wrong, *[0] * (12 - len(wrong))]
    return [one([], i % 3, victim={"wrong": w}, model=f"net{i // 3}") for i, w in enumerate(wrong)]


# At 40 wrong bits the damage is 0.5 points without sharpening and 4 with it, three seeds apart by a little.
SHARP = [("sigma", 0.1, [10, 11, 12], 1.0), ("sigma", 0.2, [40, 41, 42], 4.0), ("sigma", 0.5, 128, 30.0)]
BLUNT = [("sigma", 0.1, [40, 42, 41], 0.5), ("sigma", 0.2, [80, 81, 84], 4.0), ("sigma", 0.5, 128, 30.0)]
POOLED = {"axis": "method.pool", "better": True, "worse": False, "margin": 0.01}
SHARPENED = {"axis": "method.sharpness", "better": 0.1, "worse": 0, "margin": 0.01, "resolution": 0.5}
SHARPNESS = {"key": "sharpness", "values": (0.1, 0)}
OTHER = {"axis": "method", "resists": "neuralmark", "falls": "uchida", "claimed": True}
ROUNDS = {"axis": "method.rounds", "margin": 0.0025}
FORGE = {"axis": "method", "fails": "neuralmark", "succeeds": "uchida", "rate": 0.5}
RATIO = [("ratio", 0.5, 0, 1.0)]
MILD = ("factor", 1, 0, 1.0, True)
PARTLY = seeds([MILD, ("factor", 10, 128, 1.0, [True, True, False])], method="uchida", attack="overwrite")
APART = seeds([("factor", 9, 0, 0.0)], options={"rounds": 4})
ELSEWHERE = [("epoch", 1, 122, float("nan"))]  # on another task there is no damage

# Criterion -> its parameters, and runs for each verdict.
CASES = {
    "no_bit_lost": [
        ({"most": 0.01}, HELD, seeds([("ratio", 0.65, 0, 60.0)])),
        ({"most": 0.01}, OPEN, seeds([("ratio", 0.65, 3, 60.0)], victim={"wrong": 3})),  # which ones is not known
        ({"most": 0.01}, FAILED, seeds([("ratio", 0.65, [0, 0, 1], 60.0)])),
        ({"most": 0.01}, OPEN, seeds([("ratio", 0.65, 0, 60.0)], count=1)),  # too few bits
        ({"most": 0.01}, OPEN, seeds([])),
    ],
    "survives": [
        ({}, HELD, seeds([("ratio", 0.5, 20, 1.0), ("ratio", 0.9, 128, 60.0)])),  # the second is the model destroyed
        ({}, FAILED, seeds([("ratio", 0.5, 20, 1.0), ("ratio", 0.9, 128, 4.0)])),
        ({}, OPEN, seeds([("ratio", 0.5, [20, 20, 90], 1.0)])),  # the seeds disagree
        ({"claimed": True}, HELD, seeds([("factor", 1, 20, 1.0, True), ("factor", 10, 128, 1.0, False)])),
        ({"claimed": True}, FAILED, seeds([("factor", 1, 128, 1.0, True)])),
        ({"claimed": True}, OPEN, seeds([("factor", 1, 0, 1.0, [True, True, False])])),
        # A removal that does not count for all seeds: the model destroyed in one, the second mark not read in one.
        ({}, OPEN, seeds([("factor", 1, 0, 1.0), ("factor", 10, 128, [4.9, 4.8, 5.1])])),
        ({"claimed": True}, OPEN, seeds([MILD, ("factor", 10, 128, 1.0, [True, True, False])])),
        ({}, FAILED, seeds([("factor", 1, 128, 1.0), ("factor", 10, 128, [4.9, 4.8, 5.1])])),
        ({"claimed": True}, HELD, seeds([MILD, ("factor", 10, 0, 1.0, [True, True, False])])),
    ],
    "resists_where_other_falls": [
        (OTHER, HELD, overwritten(0, 128)),
        (OTHER, FAILED, overwritten(0, 0)),  # the plain one resists too
        (OTHER, FAILED, overwritten(128, 128)),
        (OTHER, OPEN, overwritten(0, 128, claim=False)),
        (OTHER, OPEN, [*overwritten(0, 128)[:3], *PARTLY]),  # not "survives as well"
    ],
    "not_hurt": [
        ({"most": 1.0}, HELD, hurt(0.1, 0.0, 0.2)),
        ({"most": 1.0}, FAILED, hurt(3.0, 3.1, 2.9)),
        ({"most": 1.0}, OPEN, hurt(0.0, 1.5, 0.6)),
    ],
    "verified_everywhere": [
        ({"log10_p": -38.53, "least": 0.7}, HELD, families(29)),  # 227 of 256
        ({"log10_p": -38.53, "least": 0.7}, FAILED, families(30)),
        ({"log10_p": -38.53, "least": 0.7}, OPEN, families()[:3]),
        ({"log10_p": -80, "least": 0.7}, OPEN, families()),  # 256 bits do not say so much
    ],
    "forged_only": [
        (FORGE, HELD, forged(0, 6)),
        (FORGE, FAILED, forged(1, 6)),
        (FORGE, FAILED, forged(0, 0)),
        (FORGE, OPEN, forged(0, 4)),
        (FORGE, OPEN, forged(0, 0)[:6]),
        # Three marks show nothing about one half, whatever number of claims is made on each.
        (FORGE, OPEN, forged(0, 3, marks=3)),
        (FORGE, OPEN, forged(0, 0, marks=3, kinds=90)),
    ],
    "fewer_wrong_bits": [
        (POOLED, HELD, variants([("ratio", 0.5, [0, 1, 2], 0.0)], [("ratio", 0.5, [20, 22, 21], 0.0)])),
        (POOLED, FAILED, variants([("ratio", 0.5, [20, 22, 21], 0.0)], [("ratio", 0.5, [0, 1, 2], 0.0)])),
        (POOLED, FAILED, variants([("ratio", 0.5, 20, 0.0)], [("ratio", 0.5, 20, 0.0)])),  # below the margin
        (POOLED, OPEN, variants([("ratio", 0.5, [0, 9, 30], 0.0)], [("ratio", 0.5, [20, 2, 41], 0.0)])),
        (POOLED, OPEN, variants(RATIO, RATIO)),  # neither loses a bit
        (POOLED, OPEN, seeds(RATIO, options={"pool": True})),  # nothing beside it
        (POOLED, OPEN, variants(RATIO, [("ratio", 0.5, [0, 1, 0], 0.0)])),  # too weak to tell
        (POOLED, OPEN, variants([("ratio", 0.5, 1, 0.0)], RATIO)),
        (POOLED, OPEN, variants([("ratio", 0.5, [18, 19, 18], 0.0)], [("ratio", 0.5, 21, 0.0)])),  # the margin within
        (POOLED, FAILED, variants([("ratio", 0.5, 20, 0.0)], [("ratio", 0.5, 21, 0.0)])),  # fewer by 0.4% only
        (POOLED, OPEN, variants([("ratio", 0.5, 0, 0.0)], [("ratio", 0.9, 60, 0.0)])),  # nothing in common
        (POOLED, FAILED, variants([("ratio", 0.5, 20, 0.0)], [("ratio", 0.5, 20, 0.0), ("ratio", 0.9, 128, 0.0)])),
    ],
    "fewer_at_equal_damage": [
        (SHARPENED, HELD, variants(SHARP, BLUNT, **SHARPNESS)),
        (SHARPENED, FAILED, variants(BLUNT, SHARP, **SHARPNESS)),
        (SHARPENED, FAILED, variants(SHARP, SHARP, **SHARPNESS)),
        (SHARPENED, OPEN, variants([("sigma", 1, [0, 9, 30], 9.0)], [("sigma", 1, [20, 2, 41], 9.0)], **SHARPNESS)),
        (SHARPENED | {"knobs": ["zeroed"]}, OPEN, variants(SHARP, BLUNT, **SHARPNESS)),
        # The same bits at all but the same damage, none to speak of.
        (SHARPENED, OPEN, variants([("bits", 2, 122, 0.1)], [("bits", 2, 122, 0.0)], **SHARPNESS)),
        (SHARPENED, OPEN, variants([("bits", 2, 122, [0.4, 2.0, 2.0])], [("bits", 2, 122, 2.0)], **SHARPNESS)),
        (SHARPENED, OPEN, variants(ELSEWHERE, ELSEWHERE, **SHARPNESS)),
    ],
    "falls_with": [
        (ROUNDS, HELD, rounds([40, 41, 42], [30, 31, 33], [20, 22, 21], [4, 3, 5])),
        (ROUNDS, FAILED, rounds([4, 3, 5], [20, 22, 21], [30, 31, 33], [40, 41, 42])),
        (ROUNDS, OPEN, rounds([40, 0, 9], [0, 30, 9], [9, 9, 9], [0, 40, 9])),
        (ROUNDS, OPEN, rounds(0, 0, 0, 0)),
        (ROUNDS, OPEN, rounds(9, 9, 9, 9)[:3]),
        (ROUNDS, OPEN, rounds([0, 1, 0], 0, 0, 0)),  # too weak to tell
        (ROUNDS, FAILED, rounds(40, 40, 39, 39)),  # saves less than asked
        (ROUNDS, OPEN, [*rounds(40, 30, 20, 10)[:9], *APART]),
    ],
}
DRIFTS = [  # in float64, of the rest of the kernels
    ([1e-10, 2e-10, 1e-10], 1e-2, HELD),
    ([1e-6, 1.1e-6, 1e-6], 1e-2, FAILED),  # what float32's rounding might hide
    ([1e-10, 3e-8, 1e-10], 1e-2, OPEN),
    ([1e-10, 1e-10, 1e-10], 1e-6, OPEN),  # nothing was trained
]


@pytest.mark.parametrize(
    ("name", "parameters", "verdict", "runs"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_criteria_hold_fail_and_leave_open(name, parameters, verdict, runs):
    found = CRITERIA[name](runs, **parameters)
    assert found.verdict == verdict, found.text
    assert found.text
    assert "nan" not in found.text


@pytest.mark.parametrize(("double", "trained", "verdict"), DRIFTS)
def test_components_may_change_by_what_vanishes_in_float64(monkeypatch, double, trained, verdict):
    def fine_tuned(cfg):
        found = {"components": 1e-6, "components_double": double[cfg.seed]}
        return found | {"trained": trained, "decay": 0.0, "steps": 40}

    monkeypatch.setattr(invariance, "fine_tuned", fine_tuned)
    found = CRITERIA["components_unchanged"](seeds([("epoch", 10, 0, 0.0)]), most=1e-8)
    assert found.verdict == verdict, found.text


@pytest.mark.parametrize(
    ("difference", "wrong", "verdict"),
    [
        ([1e-7, 1.1e-7, 1e-7], 0, HELD),
        ([1e-3, 1.1e-3, 1e-3], 0, FAILED),
        ([1e-7, 1.1e-7, 1e-7], 1, FAILED),
        ([1e-7, 3e-6, 1e-7], 0, OPEN),
    ],
)
def test_equivariance_is_asked_of_components_and_of_bits(monkeypatch, difference, wrong, verdict):
    monkeypatch.setattr(invariance, "rearranged", lambda cfg: {"difference": difference[cfg.seed]})
    found = CRITERIA["equivariant"](seeds([("scale", 4, wrong, 0.0)]), error=1.2e-6, most=0.01)
    assert found.verdict == verdict, found.text


def test_every_criterion_has_a_case_of_each_verdict():
    assert {*CASES, "components_unchanged", "equivariant"} == set(CRITERIA)
    assert all({case[1] for case in cases} == {HELD, FAILED, OPEN} for cases in CASES.values())


def test_a_claim_is_as_good_as_its_worst_attack():
    good = variants([("ratio", 0.5, [0, 1, 2], 0.0)], [("ratio", 0.5, [20, 22, 21], 0.0)])
    bad = variants([("epoch", 5, 20, 0.0)], [("epoch", 5, 20, 0.0)], attack="finetune")
    nothing = variants(RATIO, RATIO, attack="quantize")

    def fewer(runs):
        return decide("fewer_wrong_bits", runs, POOLED)

    assert [fewer(r).verdict for r in (good, [*good, *nothing], [*good, *nothing, *bad])] == [
        HELD,
        OPEN,
        FAILED,
    ]
    assert all(f"{attack}: " in fewer([*good, *bad]).text for attack in ("prune", "finetune"))


def test_the_envelope_rises_from_the_victim_and_stops_at_chance():
    damage, error = envelope(one([("a", 1, 20, -1.0), ("a", 2, 10, 2.0), ("b", 1, 200, 3.0), ("a", 3, 64, 2.0)]))
    assert damage.tolist() == [0.0, 2.0, 3.0]
    assert error.tolist() == [20 / N, 64 / N, 0.5]
    only = envelope(one([("a", 1, 20, 1.0), ("b", 1, 200, 3.0)]), ["a"])
    assert [x.tolist() for x in only] == [[0.0, 1.0], [0.0, 20 / N]]
    elsewhere = envelope(one([("a", 1, 20, 1.0), ("b", 1, 200, float("nan"))]))  # no damage to place it at
    assert [x.tolist() for x in elsewhere] == [[0.0, 1.0], [0.0, 20 / N]]


def test_equal_damage_is_the_damage_that_both_reach():
    # From 0 to 2 points: without sharpening all is lost at half a point, with it a straight line up to 4.
    runs = variants([("sigma", 1, 128, 4.0)], [("sigma", 1, 128, 0.5), ("sigma", 2, 128, 2.0)], **SHARPNESS)
    found = CRITERIA["fewer_at_equal_damage"](runs, **SHARPENED)
    assert found.text.startswith("BER 0.1250 against 0.4356")
    assert found.verdict == HELD
    # Without it no strength costs anything: only the noise of the test set would say which is better.
    runs = variants([("sigma", 1, 128, 4.0)], [("sigma", 1, [128, 127, 126], 0.0)], **SHARPNESS)
    found = CRITERIA["fewer_at_equal_damage"](runs, **SHARPENED)
    assert found.verdict == OPEN
    assert "one of the two costs 0.00 points of damage at most, and below 0.5 all is noise" in found.text


def test_a_lost_bit_and_a_gained_one_are_no_proof_that_none_was_lost():
    most = {"most": 0.01}
    net = CRITERIA["no_bit_lost"](seeds([("epoch", 1, 2, 0.0)], victim={"wrong": 2}), **most)
    assert net.verdict == OPEN
    assert "0 more of 768 bits wrong" in net.text
    assert "6 were wrong before" in net.text
    assert CRITERIA["no_bit_lost"](seeds([("epoch", 1, 5, 0.0)], victim={"wrong": 2}), **most).verdict == FAILED


def test_damage_that_is_not_defined_is_no_number():
    found = CRITERIA["no_bit_lost"](seeds([("epoch", 1, 0, float("nan"))]), most=0.01)
    assert found.verdict == HELD
    assert found.text.endswith("damage –")


def test_strengths_of_one_variant_alone_are_not_averaged():
    short = [("ratio", 0.5, 20, 0.0)]
    runs = variants(short, [*short, ("ratio", 0.9, 128, 0.0)])
    assert "BER 0.0781 against 0.0781" in CRITERIA["fewer_wrong_bits"](runs, **POOLED).text


def test_what_is_not_counted_is_said():
    found = CRITERIA["survives"](seeds([("factor", 1, 0, 1.0), ("factor", 10, 128, [4.9, 4.8, 5.1])]))
    assert "at factor 10, detected in 0 of 2, 1 not counted (model destroyed)" in found.text


def test_networks_data_and_attacks_are_judged_one_by_one():
    digits = [one([], s, victim={"host": VICTIM + 3 + s / 10}, config_hash="a") for s in range(3)]
    cifar = [one([], s, victim={"host": VICTIM + 0.1}, data="cifar10", config_hash="b") for s in range(3)]
    found = decide("not_hurt", [*digits, *cifar], {"most": 1.0})
    assert found.verdict == FAILED
    assert "digits: +3.10 points lost" in found.text
    assert "cifar10: +0.10 points lost" in found.text
    # No strength of one attack is pooled with the same of another.
    runs = [*seeds([("epoch", 1, 0, 0.0)]), *seeds([("epoch", 1, 9, 0.0)], attack="finetune")]
    found = decide("no_bit_lost", runs, {"most": 0.01})
    assert "prune: 0 of 768 bits lost" in found.text
    assert "finetune: 27 of 768 bits lost" in found.text


@pytest.mark.parametrize(("axis", "fine"), [(None, False), ("method.pool", True), ("method.rounds", False)])
def test_several_configurations_are_never_averaged(axis, fine):
    # As seeds vary: the same hash. Two values of method.pool: two.
    runs = variants(RATIO, RATIO)
    runs = [Run(r.config, [replace(row, config_hash=str(r.config.method.pool)) for row in r.rows]) for r in runs]
    parameters = {"axis": axis, "margin": 0.01} if axis == "method.rounds" else POOLED if axis else {"most": 0.01}
    name = {None: "no_bit_lost", "method.pool": "fewer_wrong_bits", "method.rounds": "falls_with"}[axis]
    if fine:
        assert decide(name, runs, parameters).text
    else:
        with pytest.raises(ConfigError, match=r"method\.pool=True,False: a verdict is on one configuration"):
            decide(name, runs, parameters)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_enough_marks_are_the_fewest_that_show_a_share(share):
    n = enough(share)
    assert metrics.clopper_pearson(n, n)[0] >= share > metrics.clopper_pearson(n - 1, n - 1)[0]
    assert metrics.clopper_pearson(0, n)[1] <= 1 - share
    with pytest.raises(ConfigError, match="no number of marks shows a rate of 1"):
        enough(1.0)


def test_exact_intervals_are_scipys_and_contain_the_share():
    from bench.evidence import interval
    from bench.metrics import clopper_pearson

    assert clopper_pearson(3, 3) == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert clopper_pearson(0, 27) == pytest.approx((0.0, 1 - 0.025 ** (1 / 27)))
    assert interval([1.0]) == (1.0, -np.inf, np.inf)
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == pytest.approx((2.0, 4.302652729911275 / np.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)


# The files


def test_all_claims_share_hosts_and_marks():
    """One training schedule and one data set: what costs time is done once for all of them."""
    found = {str((cfg.train, cfg.data)) for cfg in map(first, claims.names())}
    assert len(found) == 1
    plain = config()
    assert found == {str((plain.train, plain.data))}


def first(name: str):
    return config(f"experiment=claims/{name}")


@pytest.mark.parametrize("name", claims.names())
def test_a_claims_file_says_what_its_criterion_needs(name):
    claim = claims.read(name, ["results_dir=unused"])
    assert claim.paper
    assert len(claim.text.split()) > 4
    assert claim.criterion in CRITERIA
    axes = {}
    for words in claim.jobs:
        for word in words[1:]:
            key, _, value = word.partition("=")
            axes.setdefault(key, set()).add(value)
    assert len(axes["seed"]) >= claims.SEEDS
    # What it compares is what it sweeps.
    if axis := claim.parameters.get("axis"):
        named = ("better", "worse", "resists", "falls", "fails", "succeeds")
        compared = {str(v) for k, v in claim.parameters.items() if k in named}
        assert compared <= axes[axis]
        assert len(axes[axis]) > 1
    if knobs := claim.parameters.get("knobs"):
        source = (ROOT / "attacks" / f"{first(name).attack._target_.split('.')[1]}.py").read_text()
        assert all(f'"{knob}"' in source for knob in knobs)


def test_a_claim_is_in_no_hash(tmp_path):
    plain = run.prepare(tiny(tmp_path, "uchida", "none"))
    claimed = run.prepare(tiny(tmp_path, "uchida", "none", "experiment=claims/uchida_accuracy"))
    assert "claim" in claimed.cfg
    assert claimed.hashes() == plain.hashes()


@pytest.mark.slow
@pytest.mark.quick
def test_what_the_files_suggest_and_sweep_can_be_decided():
    """As many marks as a count needs, on the command lines in comments too."""
    tried = 0
    for name in claims.names():
        text = (ROOT / "conf" / "experiment" / "claims" / f"{name}.yaml").read_text()
        lines = [line.split()[4:] for line in text.splitlines() if line.startswith("#   python -m bench.claims ")]
        for words in ([name], *lines):
            claim = claims.read(words[0], words[1:])
            tried += len(words) > 1
            if claim.criterion == "verified_everywhere":
                assert len(claim.jobs) >= enough(claim.parameters["least"])
            elif claim.criterion == "forged_only":
                rate = claim.parameters["rate"]
                assert len(claim.jobs) / 2 >= max(enough(rate), enough(1 - rate))
    assert tried == 1


def test_a_value_given_twice_is_one_run():
    assert len(claims.read("uchida_pruning", ["seed=0,1,1"]).jobs) == 2


def test_an_axis_on_the_command_line_replaces_the_files():
    claim = claims.read("neuralmark_families", ["model=vgg13_bn", "seed=5,6", "train.epochs=3"])
    assert [words[1:] for words in claim.jobs] == [
        ["model=vgg13_bn", f"seed={seed}", "train.epochs=3"] for seed in (5, 6)
    ]
    assert claim.command == "python -m bench.claims neuralmark_families model=vgg13_bn seed=5,6 train.epochs=3"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["uchida_prunin"], "unknown claim 'uchida_prunin'; did you mean 'uchida_pruning'"),
        (["uchida_pruning", "method.nbits=3"], "method.nbits: no such key; did you mean 'n_bits'"),
        (["uchida_pruning", "data=cifar11"], "unknown data 'cifar11'; did you mean 'cifar10'"),
        (["uchida_pruning", "seed=interval(0,3)"], "an interval cannot be enumerated"),
        (
            ["uchida_pruning", "claim.criterion.name=no_bits"],
            "criterion=no_bits: not known; did you mean 'no_bit_lost'",
        ),
        (["uchida_pruning", "+claim.criterion.least=3"], "got an unexpected keyword argument 'least'"),
        (["experiment=digits"], "chooses the experiment itself"),
        (["--force"], "--force: no such flag"),
        (["uchida_accuracy", "method=uchida,neuralmark"], "method=uchida,neuralmark: a verdict is on one value of it"),
        (["uchida_pruning", "method.n_bits=64,256"], "method.n_bits=64,256: a verdict is on one value of it"),
        (
            ["neuralmark_rounds", "train.epochs=1,2"],
            "one value of it; method.rounds and seeds may",
        ),
        (
            ["uchida_pruning", "launcher=joblib"],
            "python -m bench experiment=claims/NAME launcher=joblib makes",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.setattr("bench.run.job", None)
    assert claims.main([*words, f"results_dir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_list_of_claims_is_said_before_anything_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.run.job", None)
    for content in ("{", '{"a": 1}', '[{"name": "x"}]'):
        (tmp_path / "claims.json").write_text(content)
        assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 1
        assert "holds no claims" in capsys.readouterr().err
        assert (tmp_path / "claims.json").read_text() == content


# What no criterion is asked about


def outcomes(runs: list[Run], status="done", message="") -> list:
    return [(r.config, run.Outcome(status, r.rows, message=message)) for r in runs]


def judged(done) -> tuple[str, str]:
    claim = claims.read("uchida_pruning", ["results_dir=unused"])
    found = claims.judge(claim, done)
    return found.verdict, found.text


def test_runs_that_allow_no_verdict_give_none():
    good = seeds([("ratio", 0.65, 0, 60.0)])
    assert judged(outcomes(good))[0] == HELD
    failed = [*outcomes(good[:2]), *outcomes(good[2:], "failed", "no space left")]
    assert judged(failed) == (OPEN, "1 of 3 runs failed: no space left")
    lost = [*outcomes(good[:2]), (good[2].config, run.Outcome("failed", [], message="no such layer"))]
    assert judged(lost) == (OPEN, "1 of 3 runs failed: no such layer")
    assert judged(outcomes(good, "skipped", "needs bits")) == (OPEN, "3 of 3 runs skipped: needs bits")
    assert judged(outcomes(good[:2])) == (OPEN, "2 of the 3 seeds that a verdict needs")
    bare = [*good[:2], *seeds([("ratio", 0.65, 0, 60.0)], victim={"wrong": 128})[2:]]
    assert judged(outcomes(bare)) == (OPEN, "the mark did not take in 1 of 3 victims (uchida on resnet18: BER 0.50)")


def test_a_control_that_detects_gives_no_verdict():
    runs = seeds([("ratio", 0.65, 0, 60.0)])
    x = SimpleNamespace(verify=SimpleNamespace(alpha=ALPHA), method=SimpleNamespace(boundary=None))
    alarm = [replace(runs[0].rows[0], detected=True), *runs[0].rows[1:]]
    keys = {"random_keys": 1000, "false_positives": 9}
    for rows, found, said in ((alarm, None, "the unmarked host"), (runs[0].rows, keys, "9 of 1,000 random keys")):
        outcome = run.concluded(x, "cached", rows, found, None)  # as the pipeline reports it
        verdict, text = judged([(runs[0].config, outcome), *outcomes(runs[1:])])
        assert verdict == OPEN
        assert text.startswith(f"1 of 3 runs failed: control failed: {said} ")


# The command, on rows made by hand


@pytest.fixture
def faked(monkeypatch):
    """run.job without a run: points as given, for each seed."""
    asked = []

    def fake(points=(("ratio", 0.65, 0, 60.0),), status="done"):
        def job(cfg, say, progress):
            asked.append(cfg)
            say("training")
            with progress("training", 2) as step:
                step()
            found = one(points, cfg.seed, data=cfg.data.label, method="uchida")
            return run.Outcome(
                status, found.rows if status == "done" else [], message="" if status == "done" else "why"
            )

        monkeypatch.setattr("bench.run.job", job)
        return asked

    return fake


def test_verdicts_go_into_files_and_a_table_of_80_columns(faked, capsys, tmp_path):
    faked()
    assert claims.main(["uchida_pruning", "uchida_accuracy", f"results_dir={tmp_path}"]) == 0
    out = capsys.readouterr()
    assert max(map(len, out.out.splitlines()[:-4])) <= 80
    assert "held 2, failed 0, inconclusive 0" in out.out
    assert "[uchida_pruning 3 of 3] seed=2" in out.err
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [tuple(e) for e in entries] == [verdicts.COLUMNS] * 2
    pruning = entries[1]
    assert (pruning["name"], pruning["verdict"], pruning["data"], pruning["model"]) == (
        "uchida_pruning",
        "held",
        "digits",
        "resnet18",
    )
    assert (pruning["seeds"], pruning["run_ids"]) == ([0, 1, 2], ["r0", "r1", "r2"])
    assert pruning["criterion"] == "no_bit_lost(most=0.01)"
    assert pruning["command"] == f"python -m bench.claims uchida_pruning results_dir={tmp_path}"
    table = list(csv.DictReader((tmp_path / "tables" / "claims.csv").open()))
    assert [line["verdict"] for line in table] == ["held", "held"]
    assert table[1]["text"] == pruning["text"]
    assert pruning["text"].split(" (")[0] in (tmp_path / "tables" / "claims.md").read_text()
    assert r"\toprule" in (tmp_path / "tables" / "claims.tex").read_text()


def test_a_failed_claim_is_a_result_and_a_failed_run_is_not(faked, capsys, tmp_path):
    faked((("ratio", 0.65, 9, 60.0),))
    assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "claims.json").read_text())[0]["verdict"] == "failed"
    faked(status="failed")
    assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 1
    out = capsys.readouterr()
    assert out.err.count("error: why") == 3
    (again,) = json.loads((tmp_path / "claims.json").read_text())
    assert (again["verdict"], again["text"]) == ("inconclusive", "3 of 3 runs failed: why")


def test_verdicts_of_other_claims_and_other_data_stay(faked, tmp_path):
    faked()
    for words in (["uchida_pruning"], ["uchida_accuracy"], ["uchida_pruning", "data=cifar10"], ["uchida_pruning"]):
        assert claims.main([*words, f"results_dir={tmp_path}"]) == 0
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [(e["name"], e["data"]) for e in entries] == [
        ("uchida_accuracy", "digits"),
        ("uchida_pruning", "cifar10"),
        ("uchida_pruning", "digits"),
    ]


def test_an_interruption_keeps_what_was_judged(faked, monkeypatch, capsys, tmp_path):
    asked = faked()
    job = run.job

    def stop(cfg, say, progress):
        if len(asked) == 4:
            raise KeyboardInterrupt
        return job(cfg, say, progress)

    monkeypatch.setattr("bench.run.job", stop)
    assert claims.main(["uchida_pruning", "uchida_accuracy", f"results_dir={tmp_path}"]) == 130
    assert [e["name"] for e in json.loads((tmp_path / "claims.json").read_text())] == ["uchida_pruning"]
    assert "interrupted" in capsys.readouterr().err


def test_a_smoke_test_leaves_the_verdict_alone(faked, capsys, tmp_path):
    faked()
    base = ["uchida_pruning", f"results_dir={tmp_path}"]
    smoke = ["train.epochs=1", "data.train_limit=100", "seed=0", "threads=1"]
    for words in ([], smoke, [*smoke[2::-1], "device=cpu", "cache.url=null"], ["force=false", "data=digits"]):
        assert claims.main([*base, *words]) == 0
    assert "digits, data.train_limit=100, seed=0, train.epochs=1)" in " ".join(capsys.readouterr().out.split())
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [(len(e["seeds"]), e["verdict"]) for e in entries] == [(3, "held"), (1, "inconclusive")]
    assert "digits, data.train_limit=100, seed=0, train.epochs=1, 1 seeds" in (
        (tmp_path / "tables" / "claims.md").read_text().replace("\\", "")
    )


def test_processes_that_write_at_once_lose_no_verdict(tmp_path):
    path = tmp_path / "claims.json"

    def entry(i):
        return dict.fromkeys(verdicts.COLUMNS, "x") | {"name": f"claim{i:02}"}

    threads = [threading.Thread(target=verdicts.remember, args=(path, entry(i))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e["name"] for e in verdicts.read(path)] == [f"claim{i:02}" for i in range(12)]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("method=uchida has no module"), "not judged: method=uchida has no module"),
        (ZeroDivisionError("by\nzero"), "not judged: ZeroDivisionError: by zero (debug=true shows where)"),
    ],
)
def test_a_claim_that_cannot_be_judged_stops_no_other(faked, monkeypatch, capsys, tmp_path, error, said):
    def fine_tuned(cfg):
        raise error

    faked()
    monkeypatch.setattr(invariance, "fine_tuned", fine_tuned)
    words = ["tang_finetuning", "uchida_accuracy", f"results_dir={tmp_path}"]
    assert claims.main(words) == 1
    entries = {e["name"]: e for e in json.loads((tmp_path / "claims.json").read_text())}
    assert (entries["tang_finetuning"]["verdict"], entries["tang_finetuning"]["text"]) == (OPEN, said)
    assert entries["tang_finetuning"]["seeds"] == [0, 1, 2]
    assert entries["uchida_accuracy"]["verdict"] == HELD
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert f"error: tang_finetuning: {said.removeprefix('not judged: ')}" in err
    assert claims.main([*words, "debug=true"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_claim_without_a_run_is_named_by_its_configuration(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.run.job", lambda *args: 1 / 0)
    assert claims.main(["uchida_accuracy", f"results_dir={tmp_path}"]) == 1
    (entry,) = json.loads((tmp_path / "claims.json").read_text())
    assert (entry["verdict"], entry["data"], entry["model"], entry["seeds"]) == (OPEN, "digits", "resnet18", [])


def test_jobs_show_their_progress(faked, monkeypatch, tmp_path):
    shown = []

    @contextmanager
    def live(prefix=""):
        @contextmanager
        def progress(what, total):
            yield lambda: shown.append(f"{prefix}{what}/{total}")

        yield terminal.say, progress

    faked()
    monkeypatch.setattr(terminal, "live", live)
    assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 0
    assert shown == [f"[uchida_pruning {i} of 3] training/2" for i in (1, 2, 3)]


# Components, on a network


@pytest.mark.slow
@pytest.mark.quick
def test_components_of_a_real_mark(results):
    cfg = tiny(results, "frequency", "finetune", "attack.epochs=2")
    found = invariance.fine_tuned(cfg)
    # What rounding did in float32 is gone in float64, but for the basis, which is kept in float32.
    assert found["components_double"] < 1e-8 < found["components"] < 1e-5
    assert found["trained"] > 1e-3
    assert 0 < found["decay"] < 1e-3
    assert found["steps"] == 2 * (run.prepare(cfg).task.size("attacker") // 64)
    assert invariance.rearranged(cfg)["difference"] < 1.2e-6


@pytest.mark.slow
@pytest.mark.quick
def test_a_fine_tuning_that_reaches_the_components_is_seen(results, monkeypatch):
    from attacks.finetune import Finetune

    honest = Finetune.run

    def dishonest(self, victim, rng, fit):
        for snapshot in honest(self, victim, rng, fit):
            with torch.no_grad():
                kernels = snapshot.model.get_parameter(invariance.KERNELS)
                kernels += 1e-3 * kernels.std() * torch.randn(kernels.shape, generator=torch.Generator().manual_seed(0))
            yield snapshot

    monkeypatch.setattr(Finetune, "run", dishonest)
    # A learning rate of its own: what is measured here is cached under its run.
    found = invariance.fine_tuned(tiny(results, "frequency", "finetune", "attack.epochs=1", "attack.lr=0.000301"))
    assert found["components_double"] > 1e-4


def test_it_is_fine_tuned_by_the_attacker_of_the_run(results, monkeypatch):
    from attacks.finetune import Finetune

    class Stop(Exception):
        pass

    seen = []

    def look(self, victim, rng, fit):
        seen.append((victim, rng.bit_generator.state, fit.seed))
        raise Stop

    monkeypatch.setattr(Finetune, "run", look)
    cfg = tiny(
        results, "frequency", "finetune", "attack.epochs=1", "attack.lr=0.000303", "attack.knows=[weights,layer]"
    )
    with pytest.raises(Stop):
        invariance.fine_tuned(cfg)
    with pytest.raises(Stop):
        list(run.attack_rows(run.prepare(cfg)))
    (here, *draws), (there, *others) = seen
    assert draws == others
    assert here.where == there.where is not None
    assert (here.key, here.other) == (there.key, there.other) == (None, None)
    assert here.fresh is not None
    assert vars(here.task).keys() == vars(there.task).keys()
    assert here.task.train == there.task.train


@pytest.mark.parametrize(
    ("method", "attack", "said"),
    [("uchida", "finetune", "no frequency module"), ("frequency", "none", "compared after attack=finetune")],
)
def test_components_of_what_has_none(tmp_path, method, attack, said):
    with pytest.raises(ConfigError, match=said):
        invariance.fine_tuned(tiny(tmp_path, method, attack))


def test_components_that_are_no_numbers_are_said(results, monkeypatch):
    cfg = tiny(results, "frequency", "finetune", "attack.epochs=1", "attack.lr=0.000302")
    monkeypatch.setattr(invariance, "parts", lambda x, model: (torch.full((2, 2, 8), torch.nan), torch.ones(2, 2, 9)))
    with pytest.raises(UserError, match="no numbers"):
        invariance.fine_tuned(cfg)


# End to end


@pytest.mark.slow
@pytest.mark.quick
def test_claims_are_run_once_and_judged(tmp_path):
    words = ["uchida_accuracy", "uchida_pruning", *TINY, "method.n_bits=64", f"results_dir={tmp_path}"]
    done = command(*words, module="bench.claims")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[:-4])) <= 80
    entries = {e["name"]: e for e in json.loads((tmp_path / "claims.json").read_text())}
    # 192 bits are too few to hold "none lost"; that one was lost can be seen.
    assert entries["uchida_pruning"]["verdict"] in ("inconclusive", "failed")
    assert "of 192 bits lost" in entries["uchida_pruning"]["text"]
    assert "points lost" in entries["uchida_accuracy"]["text"]
    files = list((tmp_path / "runs").rglob("*.json"))
    assert {p.stem for p in files} == {i for e in entries.values() for i in e["run_ids"]}
    assert len(files) == 6
    assert len(list((tmp_path / "cache" / "mark").glob("*/meta.json"))) == 3  # both claims ask of the same marks
    assert all("claim" not in json.loads(p.read_text())["config"] for p in files)

    before = {p: p.stat().st_mtime_ns for p in files}
    again = command(*words, module="bench.claims")
    assert again.returncode == 0
    assert "training" not in again.stderr
    assert again.stdout == done.stdout
    assert {p: p.stat().st_mtime_ns for p in files} == before
    report = command("--results", str(tmp_path), module="bench.report")
    assert report.returncode == 0, report.stderr
    with (tmp_path / "tables" / "rows.csv").open() as file:
        assert {line["method_label"] for line in csv.DictReader(file)} == {"uchida"}


@pytest.mark.slow
@pytest.mark.quick
def test_one_seed_is_run_and_leaves_the_verdict_open(results, tmp_path):
    words = ["uchida_accuracy", *TINY, "method.n_bits=64", "seed=0", f"results_dir={tmp_path}"]
    done = command(*words, f"cache.root={results}/cache", module="bench.claims")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "claims.json").read_text())
    assert (entry["verdict"], entry["text"]) == ("inconclusive", "1 of the 3 seeds that a verdict needs")
    assert [p.stem for p in (tmp_path / "runs").rglob("*.json")] == entry["run_ids"]


def test_help_names_every_claim_and_imports_no_torch():
    done = command("--help", module="bench.claims")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all(f"  {name} " in done.stdout for name in claims.names())
    assert all(f"  claims/{name} " in help_text() for name in claims.names())
    probe = "import sys; from bench import claims; claims.main(['-h']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
