"""The table of controls, and what one that detects does to everything said of its method."""

from __future__ import annotations

import pytest

from bench import metrics
from bench.report.content import assemble
from bench.report.tables import Table
from tests.fake_runs import KEYS, call, point, run, save


def made(false_positives: int = 0) -> list[dict]:
    bad = {**KEYS, "false_positives": false_positives}
    runs = [run(m, a, s, [point()], controls=KEYS) for m in ("uchida", "a") for a in ("prune", "noise") for s in (0, 1)]
    return [*runs, run("uchida", "prune", 2, [point()], controls=bad)]


def controls(runs: list[dict]) -> Table:
    return assemble(runs).parts["controls"].tables[0]


def marked(table: Table, kind: str) -> set[str]:
    """First cells of the rows that have a cell of this kind."""
    return {row[0].text for row in table.rows for cell in row if cell.kind == kind}


def test_keys_are_pooled_over_seeds_and_counted_once_whatever_the_attacks():
    table = controls(made())
    rows = {row[0]: row[1:] for row in table.texts}
    high = 100 * metrics.clopper_pearson(0, 3000)[1]
    assert rows["uchida"] == ["0.500", "0 of 3", "3,000", "0", f"0 to {high:.2g}%", "1e-9"]
    assert rows["a"][2:4] == ["2,000", "0"]
    assert not marked(table, "invalid")


def test_a_key_that_verifies_makes_every_verdict_of_its_method_invalid(tmp_path, capsys):
    runs = made(false_positives=1)
    cells = {(c.method_label, c.attack_label): c.text for c in assemble(runs).cells.itertuples()}
    assert cells["uchida", "prune"] == cells["uchida", "noise"] == "INVALID"
    assert cells["a", "prune"].startswith("survived")
    assert marked(controls(runs), "invalid") == {"uchida"}
    assert call("--results", save(tmp_path, runs), "--formats", "svg") == 1
    said = capsys.readouterr()
    assert "INVALID" in said.err
    assert "INVALID" in (tmp_path / "tables" / "summary.md").read_text()
    assert "INVALID" in (tmp_path / "report.html").read_text().split("<main>")[1].split("</section>")[0]


@pytest.mark.parametrize("found", [None, KEYS | {"random_keys": 0, "false_positives": 0}])
def test_runs_without_keys_say_so(found):
    table = controls([run("uchida", "prune", 0, [point()], controls=found)])
    assert table.texts == [["uchida", "0.500", "0 of 1", "–", "–", "–", "1e-9"]]


def test_an_invalid_method_is_bold_nowhere_and_says_so_above_its_columns():
    def made(false_positives):
        found = {**KEYS, "false_positives": false_positives}
        runs = [run("uchida", "prune", s, [point(ber=0.0)], controls=found) for s in range(3)]
        runs += [run("a", "prune", s, [point(ber=0.2)], controls=KEYS) for s in range(3)]
        return assemble(runs).parts["strengths"].tables[-1]

    assert marked(made(0), "best")
    assert not marked(made(900), "best")
    assert {group for group, _ in made(900).head} == {"", "a", "uchida (INVALID)"}


def test_a_run_that_failed_does_not_hide_what_another_found():
    failed = [point(status="failed", error="out of memory", ber=None)]
    runs = [
        run("uchida", "cut", 0, failed, controls=None),
        run("uchida", "prune", 0, [point()], controls={**KEYS, "false_positives": 9}),
    ]
    table = controls(runs)
    assert table.texts[0][3:5] == ["1,000", "9"]
    assert marked(table, "invalid")
    (summary,) = assemble(runs).parts["summary"].tables
    assert summary.texts[0][3] == "FALSE ALARM"


def test_a_mark_that_no_keys_were_tried_on_is_noted():
    def notes(found):
        runs = [run("uchida", "prune", 0, [point()], controls=found)]
        return assemble(runs).parts["summary"].tables[0].notes

    assert "no random keys" in notes(None)[0]
    assert not notes(KEYS)
