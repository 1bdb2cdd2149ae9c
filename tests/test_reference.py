"""results/reference: whole, unmixed, and what this harness still measures."""

from __future__ import annotations

import json

import pytest

from bench import metrics, readings, report, run, store
from bench.plots import ber, interval
from tests.conftest import ATTACKS, ON_PICTURES, ROOT, WHITE_BOX, config
from tests.test_slow import CIFAR10, REAL

REFERENCE = ROOT / "results" / "reference"
PICTURES = ROOT / "results" / "zhang_2021"


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return store.read_runs(REFERENCE)


def test_every_method_meets_every_attack_in_three_seeds(runs):
    cells = {(r["rows"][0]["method"], r["rows"][0]["attack"], r["rows"][0]["seed"]) for r in runs}
    methods, attacks = set(WHITE_BOX) - {"none"}, set(ATTACKS) - {"none", *ON_PICTURES}
    assert cells == {(m, a, s) for m in methods for a in attacks for s in (0, 1, 2)}
    assert len(runs) == len(cells)


def test_seeds_of_a_cell_share_their_configuration_and_nothing_failed(runs):
    hashes: dict[tuple, set] = {}
    for r in runs:
        head = r["rows"][0]
        hashes.setdefault((head["method"], head["attack"]), set()).add(head["config_hash"])
        assert {row["status"] for row in r["rows"]} <= {"ok", "skipped"}
        assert r["controls"]["random_keys"] == 1000
    assert {len(found) for found in hashes.values()} == {1}
    assert "/tmp" not in json.dumps([r["config"] for r in runs])


def test_no_control_detects_and_the_readme_shows_what_the_rows_say(runs):
    df = report.variants(runs)
    assert "FALSE ALARM" not in set(df["verdict"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in report.summary(df, report.aggregate(df)).rows:
        line = next(line for line in readme.splitlines() if line.startswith(f"| {row[0]} ") and row[1] in line)
        assert [cell.strip() for cell in line.strip("|").split("|")] == row


def test_marks_in_pictures_three_seeds_and_what_the_readme_says_of_them():
    runs = store.read_runs(PICTURES / "seeds")
    cells = {(r["rows"][0]["attack"], r["rows"][0]["seed"]) for r in runs}
    assert cells == {(attack, seed) for attack in ON_PICTURES for seed in (0, 1, 2)}
    df = report.variants(runs)
    assert len(df["config_hash"].unique()) == len(ON_PICTURES)
    found = readings.summary(readings.frame(runs, df))
    names = [name for _, name in found.head]
    seen = {cells["suspect"]: cells for cells in (dict(zip(names, row, strict=True)) for row in found.rows)}
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for p in report.points(df, report.aggregate(df)).itertuples():
        if p.knob in ("clean/inputs", "clean/truth"):
            continue
        name = metrics.suspect(p.knob, p.strength)
        said = [seen[name][key] for key in ("PSNR to unmarked", "BER each", "presence", "sees")]
        row = [name, ber(p), interval(p.utility, p.utility_half, p.utility_name), p.verdict, *said]
        assert f"| {' | '.join(row)} |" in readme


@pytest.mark.parametrize("folder", ["seeds", "variants", "cbsd68"])
def test_controls_of_marks_in_pictures(folder):
    runs = store.read_runs(PICTURES / folder)
    assert "/tmp" not in json.dumps([r["config"] for r in runs])
    assert {row["status"] for r in runs for row in r["rows"]} <= {"ok", "skipped"}
    controls = [row for r in runs for row in r["rows"] if metrics.is_control(row["knob"])]
    assert not any(row["detected"] for row in controls)
    assert len(controls) >= 3 * len(runs)
    for r in runs:
        if r["config"]["method"]["payload"] == "bits":  # no random keys exist for a logo
            assert (r["controls"]["random_keys"], r["controls"]["false_positives"]) == (1000, 0)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"no CIFAR-10 in {CIFAR10}: set BENCH_CIFAR10")
def test_one_cell_measured_again(runs, tmp_path):
    words = ["experiment=reference", "method=uchida", "attack=prune", "seed=0", "threads=1", f"results_dir={tmp_path}"]
    again = run.run(config(*words, *REAL)).rows
    (stored,) = [r["rows"] for r in runs if (r["rows"][0]["run_id"]) == again[0].run_id]
    assert [row["config_hash"] for row in stored] == [row.config_hash for row in again]
    for old, new in zip(stored, again, strict=True):
        assert (old["knob"], old["strength"]) == (new.knob, new.strength)
        # Another machine's sums round differently, and training takes it from there.
        assert old["detected"] == new.detected
        assert old["ber"] == pytest.approx(new.ber, abs=0.05)
        assert old["utility"] == pytest.approx(new.utility, abs=6)
