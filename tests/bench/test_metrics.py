"""Metrics, intervals and verdicts against numbers computed by hand or by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from bench import metrics


@pytest.mark.parametrize(("n", "need"), [(64, 56), (128, 98), (256, 176)])
def test_matches_needed_at_alpha(n, need):
    assert metrics.matches_needed(n, 1e-9) == need
    assert metrics.is_detected(metrics.log10_p(1 - need / n, n), 1e-9)
    assert not metrics.is_detected(metrics.log10_p(1 - (need - 1) / n, n), 1e-9)


def test_neuralmark_security_boundary():
    # The paper: 227 of 256 bits at 2^-128.
    assert metrics.matches_needed(256, 2.0**-128) == 227


def test_the_work_of_a_claim_is_what_its_boundary_asks_for():
    assert metrics.CLAIM == 2.0**-80
    for n, bar in ((256, 2.0**-128), (256, metrics.CLAIM), (1024, metrics.CLAIM)):
        need = metrics.matches_needed(n, bar)
        assert metrics.work_bits(n, bar) == pytest.approx(-binom.logsf(need - 1, n, 0.5) / math.log(2), rel=1e-9)
        assert -math.log2(bar) <= metrics.work_bits(n, bar) < -math.log2(bar) + 4
    assert metrics.work_bits(80, metrics.CLAIM) == pytest.approx(80)
    assert metrics.work_bits(79, metrics.CLAIM) is None  # a message that short is no proof, not even read without error


def test_all_bits_right_is_two_to_the_minus_n():
    for n in (1, 8, 64, 2048):
        assert metrics.log10_p(0.0, n) == pytest.approx(n * math.log10(0.5), rel=1e-12)
    # what the tail of scipy's survival function cannot say:
    assert binom.logsf(2046, 2048, 0.5) == -math.inf
    assert metrics.log10_p(1 / 2048, 2048) == pytest.approx(math.log10(2049) - 2048 * math.log10(2), rel=1e-12)


def test_too_few_bits_reach_no_verdict():
    assert metrics.matches_needed(29, 1e-9) is None
    assert metrics.matches_needed(30, 1e-9) == 30


@given(st.integers(1, 512), st.data())
def test_log10_p_is_the_binomial_tail(n, data):
    k = data.draw(st.integers(0, n))
    expected = binom.sf(k - 1, n, 0.5)
    assert 10 ** metrics.log10_p(1 - k / n, n) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@given(st.integers(1, 300), st.floats(0.001, 0.999), st.data())
def test_log10_p_of_bits_that_match_by_another_chance(n, chance, data):
    k = data.draw(st.integers(0, n))
    expected = binom.sf(k - 1, n, chance)
    assert 10 ** metrics.log10_p(1 - k / n, n, 1, chance) == pytest.approx(expected, rel=1e-6, abs=1e-300)
    need = metrics.matches_needed(n, 1e-9, 1, chance)
    assert need is None or binom.sf(need - 1, n, chance) <= 1.000001e-9 < binom.sf(need - 2, n, chance)
    assert (need is None) == (n * math.log10(chance) > -9)


def test_bits_that_never_or_always_match_by_chance():
    assert [metrics.log10_p(error, 10, 1, 1.0) for error in (0.0, 0.5)] == [0.0, 0.0]
    assert [metrics.log10_p(error, 10, 1, 0.0) for error in (0.0, 1.0)] == [-math.inf, 0.0]
    assert metrics.log10_p(0.25, 64, 2, 0.5) == metrics.log10_p(0.25, 64, 2)
    assert metrics.work_bits(100, metrics.CLAIM, 1, 0.1) == pytest.approx(80, abs=4)


def test_ber_counts_undecided_and_unreadable_bits_as_half():
    truth = torch.tensor([True, True, False, False])
    assert metrics.ber(torch.tensor([0.9, 0.51, 0.1, 0.49]), truth) == 0.0
    assert metrics.ber(torch.tensor([0.1, 0.1, 0.9, 0.9]), truth) == 1.0
    assert metrics.ber(torch.tensor([0.5, 0.9, 0.1, 0.1]), truth) == 0.125
    assert metrics.ber(torch.full((4,), math.nan), truth) == 0.5
    assert metrics.weakest(torch.tensor([0.9, 0.51, 0.1, 0.3]), truth) == pytest.approx(0.51)
    assert metrics.matches(0.125, 4) == 3  # 3.5 matches: the half is not the claimant's


@given(st.integers(1, 5000), st.data())
def test_clopper_pearson_is_scipys_exact_interval(trials, data):
    hits = data.draw(st.integers(0, trials))
    expected = binomtest(hits, trials).proportion_ci(method="exact")
    assert metrics.clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-12)


def test_random_keys_alarm_only_beyond_what_alpha_allows():
    assert metrics.clopper_pearson(0, 1000)[1] == pytest.approx(0.003682, abs=1e-6)
    assert not metrics.false_alarm(0, 1000, 1e-9)
    assert metrics.false_alarm(1, 1000, 1e-9)
    assert not metrics.false_alarm(12, 1000, 0.01)  # 10 expected
    assert metrics.false_alarm(25, 1000, 0.01)
    assert not metrics.false_alarm(math.nan, math.nan, 1e-9)
    assert not metrics.false_alarm(None, None, 1e-9)
    row = {"status": "ok", "knob": "host", "detected": False, "claim_detected": None, "alpha": 1e-9}
    assert metrics.verdict(row, "removal", 5.0) == "control"
    assert metrics.verdict({**row, "random_keys": 1000, "false_positives": 0}, "removal", 5.0) == "control"
    assert metrics.verdict({**row, "random_keys": 1000, "false_positives": 2}, "removal", 5.0) == "FALSE ALARM"


def test_an_inverted_message_is_evidence_where_bits_are_signs():
    assert metrics.log10_p(1.0, 256) == 0.0
    both = math.log10(2)
    assert (
        metrics.log10_p(1.0, 256, tails=2)
        == metrics.log10_p(0.0, 256, tails=2)
        == pytest.approx(metrics.log10_p(0.0, 256) + both)
    )
    assert metrics.log10_p(0.5, 256, tails=2) == 0.0
    # Half errors are rounded against the claimant in either tail.
    assert metrics.log10_p(1 - 0.5 / 8, 8, tails=2) == pytest.approx(math.log10(9 / 256) + both)


@given(st.integers(1, 64), st.floats(1e-12, 0.2))
def test_two_tails_and_two_readings_keep_the_false_positive_rate(n, alpha):
    """The chance that a random message is detected, over all outcomes, is at most alpha for every sharing of it."""
    outcomes = [(k, binom.pmf(k, n, 0.5)) for k in range(n + 1)]
    for tails, readings in ((1, 1), (2, 1), (2, 2)):
        hits = sum(p for k, p in outcomes if metrics.is_detected(metrics.log10_p(1 - k / n, n, tails), alpha, readings))
        assert hits <= alpha / readings * (1 + 1e-9)
    need = metrics.matches_needed(n, alpha, 4)
    assert (need is not None) == metrics.is_detected(metrics.log10_p(0.0, n, 2), alpha, 2)
    if need is not None and need > n / 2 + 1:
        assert metrics.is_detected(metrics.log10_p(1 - need / n, n, 2), alpha, 2)
        assert not metrics.is_detected(metrics.log10_p(1 - (need - 1) / n, n, 2), alpha, 2)


def test_the_reading_that_a_verdict_rests_on():
    def read(**values):
        return metrics.reading({"ber": 0.5, "log10_p": 0.0, "detected": False, **values})

    assert metrics.reading({"ber": None}) == (None, "")
    assert read(ber=0.1, log10_p=-9, detected=True) == (0.1, "")
    assert read(ber=1.0, log10_p=-77, detected=True) == (0.0, "inverted")
    assert read(ber=0.6) == (0.6, "")  # not detected: no more than chance
    assert read(ber_aligned=0.02, log10_p_aligned=-60.0, detected=True) == (0.02, "aligned")
    assert read(ber_aligned=0.4, log10_p_aligned=-3.0) == (0.4, "aligned")  # more than chance, less than proof
    assert read(ber_aligned=0.47, log10_p_aligned=-0.5) == (0.5, "")
    assert read(ber=0.3, log10_p=-9.0, ber_aligned=0.4, log10_p_aligned=-3.0) == (0.3, "")
    assert read(ber_aligned=1.0, log10_p_aligned=-77.0, detected=True) == (0.0, "inverted")


def test_t_interval_by_hand():
    mean, half = metrics.t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652729911275 / math.sqrt(3))  # t(2, 0.975) * 1 / sqrt(3)
    assert metrics.t_interval([5.0]) == (5.0, None)


def test_wilson_by_hand():
    low, high = metrics.wilson(0, 100)
    assert low == 0.0
    assert high == pytest.approx(metrics.Z95**2 / (100 + metrics.Z95**2))
    low, high = metrics.wilson(50, 100)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high == pytest.approx(0.5961686, abs=1e-6)


def test_seeds_that_differ_widen_the_pooled_interval():
    alike = metrics.pooled([20, 21, 19], [256] * 3)
    assert alike == metrics.wilson(60, 768)  # less than binomial dispersion narrows nothing
    assert metrics.pooled([7], [256]) == metrics.wilson(7, 256)
    assert metrics.pooled([0, 0], [64, 64]) == metrics.wilson(0, 128)
    assert metrics.pooled([64, 64], [64, 64]) == metrics.wilson(128, 128)
    # .012, .527 and .000 of 256 bits are no 768 alike: the interval must not exclude what each of them is near.
    low, high = metrics.pooled([3, 135, 0], [256] * 3)
    assert (low, high) == pytest.approx((0.0295, 0.6121), abs=1e-3)  # by hand: dispersion 157.5
    assert high - low > 5 * (metrics.wilson(138, 768)[1] - metrics.wilson(138, 768)[0])


def row(**values):
    base = {
        "status": "ok",
        "knob": "ratio",
        "detected": True,
        "claim_detected": None,
        "utility": 90.0,
        "utility_victim": 92.0,
    }
    return base | values


@pytest.mark.parametrize(
    ("goal", "values", "expected"),
    [
        ("removal", {}, "survived"),
        ("removal", {"ber": 1.0, "log10_p": -76.8}, "inverted"),
        ("removal", {"ber": 0.5, "log10_p": 0.0, "ber_aligned": 0.0, "log10_p_aligned": -76.8}, "survived (aligned)"),
        ("overwrite", {"ber": 1.0, "log10_p": -76.8, "claim_detected": True}, "ambiguous"),
        ("removal", {"detected": False}, "removed"),
        ("removal", {"detected": False, "utility": 86.9}, "destroyed"),
        ("removal", {"detected": False, "utility": 95.0}, "removed"),  # damage is signed
        ("removal", {"detected": False, "utility_victim": None}, "lost"),
        ("removal", {"detected": False, "utility_victim": np.nan}, "lost"),
        ("removal", {"detected": None}, "unmarked"),
        ("removal", {"status": "skipped"}, "skipped"),
        ("removal", {"knob": "host", "detected": False}, "control"),
        ("forge", {"knob": "host", "detected": True}, "FALSE ALARM"),
        ("removal", {"knob": "none", "detected": False}, "NO MARK"),
        ("overwrite", {"claim_detected": True}, "ambiguous"),
        ("overwrite", {"claim_detected": True, "committed": True}, "later claim"),
        ("overwrite", {"claim_detected": True, "committed": True, "detected": False}, "overwritten"),
        ("overwrite", {"claim_detected": True, "detected": False}, "overwritten"),
        ("overwrite", {"claim_detected": True, "utility": 10.0}, "destroyed"),
        ("overwrite", {"claim_detected": False}, "survived"),
        ("forge", {"claim_detected": True}, "forged"),
        ("forge", {"claim_detected": False}, "resisted"),
        ("secrecy", {"auc": 1.0, "auc_low": 0.89}, "shows"),
        ("secrecy", {"auc": 0.6, "auc_low": 0.45}, "hidden"),
        ("secrecy", {"auc": 0.2, "auc_low": 0.1}, "hidden"),
        ("secrecy", {"knob": "none", "auc_low": np.nan}, "survived"),
        ("secrecy", {"knob": "none", "detected": False}, "NO MARK"),
        ("removal", {"marked": False, "detected": False}, "NO MARK"),
        ("forge", {"marked": False, "claim_detected": True}, "NO MARK"),
        ("removal", {"log10_p_host": -2.9}, "NO HOST"),
        ("removal", {"log10_p_host": -3.1}, "survived"),
        ("removal", {"log10_p_host": -0.3, "marked": False}, "NO HOST"),
        ("removal", {"log10_p_host": -0.3, "knob": "host", "detected": False}, "NO HOST"),
        ("removal", {"log10_p_host": -0.3, "knob": "host", "detected": True}, "FALSE ALARM"),
        ("removal", {"tested": 6, "utility_half": 39.0}, "TOO FEW TEST IMAGES"),
        ("removal", {"tested": 6, "utility_half": 39.0, "knob": "host", "detected": False}, "control"),
        ("removal", {"tested": 9, "utility_half": 9.0, "utility_name": "bits/byte"}, "TOO FEW TEST TEXTS"),
        ("removal", {"tested": 359, "utility_half": 4.9}, "survived"),
        ("forge", {"tested": 6, "utility_half": 39.0, "claim_detected": True}, "forged"),
        ("secrecy", {"tested": 6, "utility_half": 39.0, "auc_low": 0.4}, "hidden"),
    ],
)
def test_verdicts(goal, values, expected):
    assert metrics.verdict(row(**values), goal, 5.0) == expected


def test_a_clean_surrogate_that_verifies_fails_the_run():
    row = {"status": "ok", "knob": "clean/same/l2", "detected": True, "claim_detected": None}
    assert metrics.verdict(row, "removal", 1.0) == "FALSE ALARM"
    assert metrics.verdict({**row, "detected": False}, "removal", 1.0) == "control"
    assert metrics.is_control("host")
    assert not metrics.is_control("none")
    assert not metrics.is_control("cleaning")


@pytest.mark.parametrize(
    ("utility", "count", "word"),
    [
        (99.16, 359, ""),  # digits, as the first table of the README has it
        (70.0, 359, ""),
        (60.0, 359, "TOO FEW TEST IMAGES"),
        (48.1, 1000, ""),  # results/reference
        (100.0, 72, "TOO FEW TEST IMAGES"),
        (100.0, 73, ""),
        (50.0, 384, ""),  # whatever the network is worth
        (50.0, 370, "TOO FEW TEST IMAGES"),
    ],
)
def test_how_many_test_images_five_points_take(utility, count, word):
    found = {"knob": "ratio", "detected": True, "tested": count, "utility_half": metrics.room(utility, count)}
    assert metrics.unsound(found, "removal", 5.0) == word


@pytest.mark.parametrize(
    ("hits", "count", "worth"), [(17, 100, False), (21, 100, True), (90, 900, False), (3, 3, True)]
)
def test_a_host_at_chance_is_none(hits, count, worth):
    """Ten classes; the probability summed by hand."""
    by_hand = math.log10(sum(math.comb(count, k) * 0.1**k * 0.9 ** (count - k) for k in range(hits, count + 1)))
    found = metrics.above(100 * hits / count, 10.0, count)
    assert found == pytest.approx(by_hand, abs=1e-6)
    row = {"knob": "ratio", "detected": True, "log10_p_host": found}
    assert (metrics.unsound(row, "removal", 5.0) == "") == worth


def test_utilities_that_are_no_shares_are_compared_example_by_example():
    rng = np.random.default_rng(0)
    hard = rng.lognormal(0, 2, 400)  # examples differ by orders of magnitude, networks by a hundredth
    host, victim = (torch.tensor(np.stack([hard * (1 + 0.01 * rng.normal(size=400)), np.ones(400)], 1)) for _ in "hv")

    def mean(parts):
        return parts[..., 0] / parts[..., 1]

    log10_p, half = metrics.paired(mean, host, victim, 2 * host, -1)
    by_hand = (victim - host)[:, 0].numpy()
    assert half == pytest.approx(metrics.Z95 * by_hand.std(ddof=1) / math.sqrt(400), rel=1e-9)
    assert half < 0.1 * metrics.Z95 * hard.std() / math.sqrt(400)
    # Twice the sum, but the count too: the blind guess is as good, example by example.
    assert log10_p == pytest.approx(0, abs=1e-9)
    blind = torch.stack([2 * host[:, 0], host[:, 1]], 1)
    assert metrics.paired(mean, host, victim, blind, -1)[0] == pytest.approx(-400 * math.log10(2))
    assert metrics.paired(mean, host, victim, blind, 1)[0] == pytest.approx(0, abs=1e-9)
