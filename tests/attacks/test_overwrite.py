"""Overwriting: the attacker's own mark, with and without training."""

from __future__ import annotations

import pytest

from bench import run
from tests.helpers import snapshots, tiny


@pytest.mark.slow
@pytest.mark.quick
def test_overwrite_reaches_its_own_mark_with_its_own_key(results):
    rows = run.run(tiny(results, "uchida", "overwrite", "attack.epochs=20")).rows
    points = [r for r in rows if r.knob.startswith("lambda")]
    assert [(r.knob, r.strength) for r in points] == [("lambda factor, lr 0.003", f) for f in (1, 10)]
    assert any(r.claim_ber == 0 and r.claim_detected for r in points)


def test_writing_over_a_module_needs_no_training(results):
    rows = {r.knob: r for r in run.run(tiny(results, "frequency", "overwrite")).rows}
    row = rows["no training"]
    assert (row.claim_ber, row.claim_detected, row.detected) == (0, True, False)
    assert abs(row.utility - row.utility_victim) < 0.6


def test_the_strength_of_an_overwriting_module_is_the_attackers(marked):
    x, model, _ = marked("frequency", "overwrite", "attack.epochs=1", "attack.lrs=[0.001]", "attack.factors=[1,10]")
    made = {strength: other for knob, strength, other in snapshots(x, model, None) if knob != "no training"}
    spread = {factor: float(x.method.components(other).detach().std()) for factor, other in made.items()}
    assert spread[10] / spread[1] == pytest.approx(10, rel=0.15)
