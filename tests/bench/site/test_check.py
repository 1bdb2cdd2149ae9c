"""Whether a run file may stand in the table: each thing that is wrong with one is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bench.cli.compose import composed
from bench.run import job
from bench.site import __main__ as site
from bench.site import check
from tests.fake_runs import point, run
from tests.helpers import TINY

WORDS = ["method=uchida", "attack=prune", "seed=0", "attack.ratios=[0.5]"]


def written(folder: Path, made: dict[str, Any]) -> Path:
    head = made["rows"][0]
    path = folder / head["method"] / head["attack"] / f"{head['run_id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))
    return path


@pytest.fixture(scope="module")
def sound() -> str:
    """A run file as it should be, as text."""
    made = run("uchida", "prune", 0, [point()], commit="0123456789ab")
    config = OmegaConf.to_container(composed(WORDS), resolve=True)
    config["verify"] |= {"max_damage": 5.0, "claim": 1e-24}  # as a run fills them in
    return json.dumps(made | {"command": WORDS, "config": config})


def test_a_whole_one_is_complete(sound, tmp_path):
    assert check.complaints(written(tmp_path, json.loads(sound))) == []


def _rows(made, **values):
    for row in made["rows"]:
        row.update(values)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda made: _rows(made, commit="0123456789ab+"), "commit 0123456789ab+: there were changes besides"),
        (lambda made: _rows(made, commit=None), "no commit: it was made outside a checkout"),
        (lambda made: made["rows"].pop(), "no row of the attack"),
        (lambda made: made["rows"].pop(0), "no row of the unmarked host"),
        (lambda made: made["rows"][0].update(detected=True), "host verifies under the owner's key"),
        (lambda made: made["rows"][2].update(status="failed", error="no memory"), "failed: no memory"),
        (lambda made: made["rows"][2].update(seed=1), "its rows are of several runs"),
        (
            lambda made: made["controls"].update(random_keys=10),
            "10 random keys were tried, fewer than 1,000 (verify.keys)",
        ),
        (lambda made: made["controls"].update(false_positives=3), "3 random keys verify"),
        (lambda made: made.update(controls=None), "0 random keys were tried, fewer than 1,000 (verify.keys)"),
        (lambda made: made.update(command=None), "no command is recorded"),
        (lambda made: made["command"].append("method=uchda"), "its command does not compose"),
        (lambda made: made["config"]["train"].update(epochs=99), "train.epochs is 99, and its command makes it 10"),
        (
            lambda made: made["config"]["verify"].update(alpha=0.5),
            "verify.alpha is 0.5, and its command makes it 1e-09",
        ),
    ],
)
def test_what_is_wrong_is_said(sound, tmp_path, spoil, said):
    made = json.loads(sound)
    spoil(made)
    assert [line[: len(said)] for line in check.complaints(written(tmp_path, made))] == [said]


def test_a_file_elsewhere_or_of_something_else(sound, tmp_path, capsys):
    path = written(tmp_path, json.loads(sound))
    other = path.rename(path.with_name("other.json"))
    assert check.complaints(other) == [f"it belongs at uchida/prune/{path.name}"]
    (tmp_path / "odd.json").write_text("[]")
    assert site.main(["--check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "odd.json is not a run file" in out
    assert out.endswith("0 of 2 run files are complete\n")


@pytest.mark.slow
@pytest.mark.quick
def test_a_run_comes_out_again_and_a_changed_number_is_found(tmp_path, capsys):
    words = ["method=uchida", "method.n_bits=64", "attack=prune", "attack.ratios=[0.5]", *TINY]
    words += ["train.epochs=1", "verify.keys=1000", "threads=1"]
    outcome = job(composed([*words, f"results_dir={tmp_path}"]), words=words)
    made = json.loads(outcome.path.read_text())
    del made["check"]  # of what is changed by hand here
    for row in made["rows"]:  # these tests may run in a checkout with changes, or in none
        row["commit"] = "0123456789ab"
    outcome.path.write_text(json.dumps(made))
    assert site.main(["--check", str(outcome.path), "--again"]) == 0, capsys.readouterr().out
    made["rows"][-1]["utility"] += 1
    outcome.path.write_text(json.dumps(made))
    assert site.main(["--check", str(outcome.path), "--again"]) == 1
    assert "ratio 0.5: utility" in capsys.readouterr().out
