"""A utility of which less is better (bits per byte): signs of damage and fidelity follow from its name everywhere."""

from __future__ import annotations

import pytest

from bench import metrics
from bench.claims import criteria
from bench.claims.findings import HELD, Run
from bench.report.content import assemble
from bench.report.figures import shown
from bench.types import Row
from tests.fake_runs import run

BITS = {"utility_name": "bits/byte", "utility_host": 2.0, "utility_victim": 2.1, "data": "pydoc"}


def text_run():
    """A host of 2.0 bits a byte, a victim of 2.1; an attack that costs .03, and one that costs .4."""
    points = [{"knob": "ratio", "strength": strength, "ber": 0.5} for strength in (0.5, 0.9)]
    made = run("uchida", "prune", points=points, config={"verify.max_damage": 0.05}, **BITS)
    for row, utility in zip(made["rows"], (2.0, 2.1, 2.13, 2.5), strict=True):
        row["utility"] = row["utility_validation"] = utility
    return made


def test_damage_is_what_a_suspect_is_worse():
    assert metrics.lost(90.0, 85.0, "top1") == 5.0
    assert metrics.lost(2.0, 2.5, "bits/byte") == metrics.lost(2.0, 2.5, "bits/byte@e2e") == 0.5
    row = {"utility": 2.5, "utility_victim": 2.1, "utility_name": "bits/byte"}
    assert metrics.damage(row) == pytest.approx(0.4)


def test_a_report_counts_downwards():
    content = assemble([text_run()])
    rows = content.everything.set_index(["knob", "strength"])
    assert rows["fidelity"].tolist() == pytest.approx([0.1] * 4)
    assert rows["verdict"].tolist() == ["control", "survived", "removed", "destroyed"]
    assert rows["damage"].tolist()[2:] == pytest.approx([0.03, 0.4])
    assert rows["weighed"].tolist()[2:] == pytest.approx([0.03, 0.4])
    assert content.cells["text"].tolist() == ["removed at 0.030 bits/byte"]
    levels = [level for chart in shown.attacks(content) for panel in chart.panels[1] for level in panel.levels]
    assert {(level.text, round(level.at, 3)) for level in levels} >= {("victim + 0.05 bits/byte", 2.15)}


def test_a_claim_of_fidelity_counts_downwards():
    row = dict.fromkeys(("run_id", "method", "attack", "model", "data"), "")
    runs = [
        Run(
            None,
            [Row(**row, seed=seed, knob="none", utility_name="bits/byte", utility_host=2.0, utility_victim=victim)],
        )
        for seed, victim in enumerate((1.9, 1.91, 1.89))
    ]
    assert criteria.not_hurt(runs, 0.0).verdict == HELD
