"""What is measured of outputs, over many runs."""

from __future__ import annotations

import pytest

from bench.report import __main__ as report
from bench.report import labels, readings
from bench.store.files import write_json
from tests.fake_runs import point, run


def restored(attack: str, seed: int, psnr: float, *more: tuple[str, float | None, float]) -> dict:
    """A run file with a block `outputs`: host, victim and `more` suspects (knob, strength, PSNR)."""
    suspects = [("host", None, 100.0), ("none", None, psnr), *more]
    points = [point(knob, at, ber=0.5 if knob.startswith("clean/") else 0.0) for knob, at, _ in more]
    made = run("boxfree", attack, seed, points, model="unet", data="photos")
    made["outputs"] = [
        {"knob": knob, "strength": strength, "psnr_to_unmarked": value, "nc": 0.75, "sees": 17}
        for knob, strength, value in suspects
    ]
    return made


@pytest.fixture
def runs() -> list[dict]:
    return [
        restored("surrogate", 0, 40.0, ("same/l2", 14, 30.0), ("clean/same/l2", 14, 31.0)),
        restored("surrogate", 1, 42.0, ("same/l2", 14, 32.0), ("clean/same/l2", 14, 31.0)),
        restored("postprocess", 0, 40.0, ("noise", 2, 39.0)),
        run("uchida", "prune", 0, [point()]),
    ]


def test_host_and_victim_are_counted_once_a_seed(runs):
    found = readings.frame(runs, labels.variants(runs))
    first = found[found["attack_label"] == "before attack"]
    assert [*zip(first["knob"], first["seed"], strict=True)] == [("host", 0), ("none", 0), ("host", 1), ("none", 1)]
    assert {*found["method_label"]} == {"boxfree"}
    assert len(found) == 9


def test_means_over_seeds(runs):
    made = readings.summary(readings.frame(runs, labels.variants(runs)))
    names = [name for _, name in made.head]
    assert names == ["method", "attack", "suspect", "PSNR to unmarked", "NC", "sees"]
    cells = {row[2]: row[3:] for row in made.texts}
    # t(0.975, 1) = 12.706, of 40 and 42: 41 ± 12.706 * sqrt(2) / sqrt(2).
    assert cells["none"] == ["41.00 ± 12.71", "0.750", "17"]
    assert cells["same/l2 14"][0] == "31.00 ± 12.71"
    assert cells["noise 2"][0] == "39.00"
    assert made.caption == "1 to 2 seeds: what has no interval is 1 seed"


def test_the_report_shows_them(tmp_path, runs, capsys):
    for i, one in enumerate(runs):
        write_json(tmp_path / "runs" / f"{i}.json", one)
    assert report.main(["--results", str(tmp_path), "--formats", "svg"]) == 0
    assert "Pictures (1 to 2 seeds" in capsys.readouterr().out
    text = (tmp_path / "tables" / "pictures.md").read_text()
    assert "31.00 ± 12.71" in text
    assert (tmp_path / "tables" / "pictures.csv").read_text().count("\n") == 10
    assert '<section id="pictures">' in (tmp_path / "report.html").read_text()


def test_a_report_without_marks_in_outputs_has_no_such_table(tmp_path):
    write_json(tmp_path / "runs" / "0.json", run("uchida", "prune", 0, [point()]))
    assert report.main(["--results", str(tmp_path), "--formats", "svg"]) == 0
    assert not (tmp_path / "tables" / "pictures.csv").exists()
    assert "pictures" not in (tmp_path / "report.html").read_text()
