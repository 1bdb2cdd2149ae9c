"""Detection: what shows, what does not, and which layer it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from attacks.detect import most_conspicuous, seen, told_apart
from bench import metrics, run
from tests.helpers import fit, tiny, victim


def shadows(draw: np.random.Generator, shift: float, count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Hosts and marks of 4 layers and 5 features; marks differ in one of layer 2."""
    hosts, marks = draw.standard_normal((2, count, 4, 5))
    marks[:, 2, 3] += shift
    return hosts, marks


def test_what_differs_is_told_apart_and_named():
    hosts, marks = shadows(np.random.default_rng(0), 12.0)
    auc, low, high = told_apart(hosts, marks, 0)
    assert auc > 0.99
    assert 0.8 < low < auc <= high <= 1
    assert (most_conspicuous(hosts, marks) == 2).all()
    assert (most_conspicuous(hosts, -marks) == 2).all()


def test_what_does_not_differ_is_not():
    found = [told_apart(*shadows(np.random.default_rng(seed), 0.0), seed) for seed in range(20)]
    # A mean of 20 with a standard error of about .075 / sqrt(20).
    assert np.mean([auc for auc, _, _ in found]) == pytest.approx(0.5, abs=0.08)
    assert sum(low > 0.5 for _, low, _ in found) <= 3
    named = most_conspicuous(*shadows(np.random.default_rng(1), 0.0, 300))
    assert (named == 2).mean() == pytest.approx(0.25, abs=0.1)


def test_the_intervals_of_an_auc_cover_it():
    low, high = metrics.auc_interval(1.0, 30, 30)
    assert (0.85 < low < 0.95, high) == (True, 1.0)
    low, high = metrics.auc_interval(0.5, 30, 30)
    assert low + high == pytest.approx(1, abs=1e-3)
    draw, shift, covered = np.random.default_rng(0), 1.0, 0
    truth = 0.7602499  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    labels = np.repeat([0, 1], 30)
    for _ in range(400):
        scores = draw.standard_normal(60) + shift * labels
        low, high = metrics.auc_interval(float(roc_auc_score(labels, scores)), 30, 30)
        covered += low <= truth <= high
    assert covered / 400 > 0.92


def test_a_layer_that_hosts_have_not_shows(marked):
    x, model, key = marked("frequency")
    names = [*key.where]
    assert np.isfinite(seen(model, names)).all()
    assert (seen(x.task.build(x.model, 0), names) == 0).all()


def test_uchidas_layer_is_named_by_who_trains_shadows_and_the_row_says_so(results):
    outcome = run.run(tiny(results, "uchida", "detect", "attack.shadows=6", "attack.epochs=6"))
    row = outcome.rows[-1]
    assert (row.knob, row.strength, row.status, row.detected) == ("shadows", 6, "ok", True)
    # Six shadows are few for as many features: the layer is certain, the AUC has a wide interval.
    assert row.layer_named > 0.8
    assert row.layer_chance == pytest.approx(1 / 13)
    assert 0.5 < row.auc <= row.auc_high <= 1
    assert row.auc_low < row.auc
    assert row.utility == row.utility_victim
    stored = json.loads(outcome.path.read_text())["rows"]
    assert (stored[-1]["auc"], stored[0]["auc"]) == (row.auc, None)
    assert metrics.verdict(stored[-1], "secrecy", 1.0) == ("shows" if row.auc_low > 0.5 else "hidden")


def test_marks_that_are_none_are_said_to_be(results):
    row = run.run(tiny(results, "uchida", "detect", "attack.shadows=2", "method.lambda_=0")).rows[-1]
    assert row.status == "skipped"
    assert "raise attack.epochs" in row.error


def test_it_repeats_bit_for_bit_whatever_torch_drew_before(marked):
    x, model, _ = marked("uchida", "detect", "attack.shadows=2")
    robbed = victim(x, model, None, fresh=lambda seed: x.task.build(x.model, seed))
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        shadow, key = x.attack._mark(robbed, np.random.default_rng(0), fit(x))
        made.append((seen(shadow, list(key.where)), key.message))
    assert (made[0][0] == made[1][0]).all()
    assert torch.equal(made[0][1], made[1][1])
