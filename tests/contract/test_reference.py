"""results/reference: whole, unmixed, and what this harness still measures."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from bench import metrics, run
from bench.report.content import assemble
from bench.report.tables import markdown
from bench.report.words import ber, interval
from bench.store.runs import read_runs
from tests.helpers import CIFAR10, ON_PICTURES, REAL, ROOT, config

RESULTS = ROOT / "results"
REFERENCE, PICTURES = RESULTS / "reference", RESULTS / "zhang_2021"
FOLDERS = ("reference", "neuralmark_2025_small", "zhang_2021/seeds")


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    return read_runs(REFERENCE)


def test_every_method_meets_every_attack_in_three_seeds(runs):
    cells = {(r["rows"][0]["method"], r["rows"][0]["attack"], r["rows"][0]["seed"]) for r in runs}
    sweep = OmegaConf.load(ROOT / "conf" / "experiment" / "reference.yaml").hydra.sweeper.params
    methods, attacks = set(sweep.method.split(",")), set(sweep.attack.split(","))
    assert len(attacks) == 12
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


GENERATED = [(folder, path.name) for folder in FOLDERS for path in sorted((RESULTS / folder).glob("*.md"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_control_detects_in_what_is_shown(folder):
    content = assemble(read_runs(RESULTS / folder))
    assert "FALSE ALARM" not in set(content.everything["verdict"])
    assert {"summary.md", "strengths.md"} <= {path.name for path in (RESULTS / folder).glob("*.md")}


@pytest.mark.parametrize(("folder", "name"), [item for item in GENERATED if item[1] != "README.md"])
def test_tables_beside_results_are_what_their_rows_give(folder, name):
    part = assemble(read_runs(RESULTS / folder)).parts[name.removesuffix(".md")]
    assert (RESULTS / folder / name).read_text(encoding="utf-8") == markdown(part.tables, part.legend)


def test_marks_in_pictures_have_three_seeds_and_what_is_said_of_them_is_what_was_seen():
    runs = read_runs(PICTURES / "seeds")
    cells = {(r["rows"][0]["attack"], r["rows"][0]["seed"]) for r in runs}
    assert cells == {(attack, seed) for attack in ON_PICTURES for seed in (0, 1, 2)}
    content = assemble(runs)
    assert len(content.everything["config_hash"].unique()) == len(ON_PICTURES)
    (found,) = content.parts["pictures"].tables
    names = [name for _, name in found.head]
    seen = {cells["suspect"]: cells for cells in (dict(zip(names, row, strict=True)) for row in found.texts)}
    said = (PICTURES / "README.md").read_text(encoding="utf-8").splitlines()
    for p in content.points.itertuples():
        name = metrics.suspect(p.knob, p.strength)
        read = [seen[name][key] for key in ("PSNR to unmarked", "BER each", "presence", "sees")]
        row = [
            name,
            ber(p).replace("](", "]\\("),
            interval(p.utility, p.utility_half, p.utility_name),
            p.verdict,
            *read,
        ]
        assert f"| {' | '.join(row)} |" in said


@pytest.mark.parametrize("folder", ["seeds", "variants", "cbsd68"])
def test_controls_of_marks_in_pictures(folder):
    runs = read_runs(PICTURES / folder)
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
    # By what it is of: the recorded rows were judged by the first protocol, whose runs have other names.
    cell = [(r["rows"][0][name] for name in ("method", "attack", "seed")) for r in runs]
    (stored,) = [r["rows"] for r, at in zip(runs, cell, strict=True) if tuple(at) == ("uchida", "prune", 0)]
    for old, new in zip(stored, again, strict=True):
        assert (old["knob"], old["strength"]) == (new.knob, new.strength)
        # Another machine's sums round differently, and training takes it from there.
        assert old["detected"] == new.detected
        assert old["ber"] == pytest.approx(new.ber, abs=0.05)
        assert old["utility"] == pytest.approx(new.utility, abs=6)
