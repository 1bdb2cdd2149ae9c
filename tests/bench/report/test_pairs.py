"""Paired differences against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_1samp

from bench.report import labels, pairs, tables
from bench.report.content import assemble
from tests.fake_runs import point, run


def differences(*runs):
    return pairs.differences(labels.variants([*runs]))


def bold(table: tables.Table) -> set[str]:
    return {cell.text for row in table.rows for cell in row if cell.kind == "best"}


def test_a_difference_is_taken_within_seeds():
    # Errors of 40 and 36, 60 and 50, 20 and 14 of 256 bits: seeds differ by far more than the methods.
    wrong = {"uchida": (40, 60, 20), "neuralmark": (36, 50, 14)}
    runs = [
        run(method, "prune", seed, [point(ber=errors / 256, damage=seed)])
        for method, all_errors in wrong.items()
        for seed, errors in enumerate(all_errors)
    ]
    line = differences(*runs).query("knob == 'ratio'").iloc[0]
    assert (line.method_a, line.method_b, line.n) == ("neuralmark", "uchida", 3)
    apart = [-4 / 256, -10 / 256, -6 / 256]
    assert line.ber == pytest.approx(-20 / 3 / 256)
    interval = ttest_1samp(apart, 0).confidence_interval(0.95)
    assert line.ber_half == pytest.approx((interval.high - interval.low) / 2)
    assert (line.damage, line.damage_half) == pytest.approx((0, 0))


def test_seeds_that_only_one_method_has_do_not_count():
    runs = [run("uchida", "prune", seed, [point(ber=0.1)]) for seed in (0, 1, 2)]
    runs += [run("neuralmark", "prune", seed, [point(ber=0.2)]) for seed in (1, 2, 3)]
    line = differences(*runs).query("knob == 'ratio'").iloc[0]
    assert (line.n, line.ber) == (2, pytest.approx(0.1))
    alone = differences(runs[0], runs[3].copy())
    assert alone.empty  # seeds 0 and 1 have nothing in common


def test_one_shared_seed_has_no_interval_and_failed_rows_do_not_enter():
    runs = [run("uchida", "prune", 0, [point(ber=0.1)]), run("neuralmark", "prune", 0, [point(ber=0.3)])]
    runs += [run("uchida", "prune", 1, [point(status="failed", error="diverged")])]
    runs += [run("neuralmark", "prune", 1, [point(ber=0.3)])]
    line = differences(*runs).query("knob == 'ratio'").iloc[0]
    assert line.n == 1
    assert math.isnan(line.ber_half)


def test_victims_are_compared_once_whatever_the_attacks():
    runs = [
        run(m, a, s, [point(ber=0.1)], utility_victim=97.0 - s * (m == "uchida"))
        for m in ("uchida", "neuralmark")
        for a in ("prune", "noise")
        for s in (0, 1)
    ]
    found = differences(*runs)
    assert list(found["attack_label"]) == ["before attack", "prune", "noise"]
    assert found.loc[0, "n"] == 2
    assert found.loc[0, "ber"] == 0
    # fidelities of 0, as in the other method, and a point
    assert found.loc[0, "utility"] == 0


def test_bold_is_what_is_better_in_every_seed_not_on_average():
    def style(others):
        runs = [run("a", "prune", seed, [point(ber=0.05)]) for seed in range(3)]
        runs += [run("b", "prune", seed, [point(ber=error)]) for seed, error in enumerate(others)]
        return bold(assemble(runs).parts["strengths"].tables[-1])

    assert style((0.25, 0.3, 0.35))
    # The pooled bits of 0.3 are as far from 0.05 as before, one seed is the other way round.
    assert not style((0.0, 0.3, 0.6))


def test_bold_needs_seeds_and_intervals_apart():
    def made(seeds, ber):
        runs = [run(m, "prune", s, [point(ber=b)]) for s in range(seeds) for m, b in (("a", 0.05), ("b", ber))]
        return assemble(runs).parts["strengths"].tables[-1]

    assert bold(made(3, 0.25))
    assert "**0.05" in tables.markdown([made(3, 0.25)], "")
    assert not bold(made(3, 0.06))
    assert not bold(made(1, 0.25))
