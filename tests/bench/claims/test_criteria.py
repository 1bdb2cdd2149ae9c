"""Criteria of claims on rows made by hand: each has a case that holds, one that fails and one that is left open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench import metrics
from bench.claims.criteria import CRITERIA, decide
from bench.claims.findings import FAILED, HELD, OPEN, Run, enough, envelope
from bench.errors import ConfigError
from bench.studies import invariance
from tests.fake_claims import VICTIM, N, one, seeds


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


def told(riga, uchida) -> list[Run]:
    """AUCs of both methods, a list over seeds each."""
    return [
        Run(r.config, [replace(row, auc=auc if row.knob == "shadows" else None) for row in r.rows])
        for m, aucs in (("riga", riga), ("uchida", uchida))
        for r, auc in zip(seeds([("shadows", 16, 0, 0.0)], len(aucs), method=m, attack="detect"), aucs, strict=True)
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


DETECT = {"axis": "method", "hidden": "riga", "shows": "uchida", "most": 0.7}


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
    "hidden_where_other_shows": [
        (DETECT, HELD, told([0.5, 0.55, 0.52], [1.0, 1.0, 1.0])),
        (DETECT, FAILED, told([0.9, 0.95, 0.92], [1.0, 1.0, 1.0])),
        (DETECT, FAILED, told([0.9, 0.95, 0.92], [0.5, 0.5, 0.5])),
        (DETECT, OPEN, told([0.5, 0.9, 0.7], [1.0, 1.0, 1.0])),
        (DETECT, OPEN, told([0.5, 0.5, 0.5], [0.6, 0.5, 0.5])),  # the detector sees nothing at all
        (DETECT, OPEN, told([None], [1.0, 1.0, 1.0])),  # its shadow marks were none
        (DETECT, OPEN, told([0.5], [1.0, 1.0, 1.0])),
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
    from bench.claims.findings import interval
    from bench.metrics import clopper_pearson

    assert clopper_pearson(3, 3) == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert clopper_pearson(0, 27) == pytest.approx((0.0, 1 - 0.025 ** (1 / 27)))
    assert interval([1.0]) == (1.0, -np.inf, np.inf)
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == pytest.approx((2.0, 4.302652729911275 / np.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)
