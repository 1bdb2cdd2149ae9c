"""Claims: the command, on rows made by hand and on real runs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from contextlib import contextmanager

import pytest

from bench import run
from bench.claims.__main__ import main
from bench.claims.claim import names
from bench.claims.findings import HELD, OPEN
from bench.cli import terminal
from bench.cli.help import help_text
from bench.errors import ConfigError
from bench.store import claims as verdicts
from bench.studies import invariance
from tests.fake_claims import one
from tests.helpers import ROOT, TINY, command

# The command, on rows made by hand


@pytest.fixture
def faked(monkeypatch):
    """run.job without a run: points as given, for each seed."""
    asked = []

    def fake(points=(("ratio", 0.65, 0, 60.0),), status="done"):
        def job(cfg, say, progress, words):
            asked.append(cfg)
            say("training")
            with progress("training", 2) as step:
                step()
            found = one(points, cfg.seed, data=cfg.data.label, method="uchida")
            return run.Outcome(
                status, found.rows if status == "done" else [], message="" if status == "done" else "why"
            )

        monkeypatch.setattr("bench.run.job", job)
        return asked

    return fake


def test_verdicts_go_into_files_and_a_table_of_80_columns(faked, capsys, tmp_path):
    faked()
    assert main(["uchida_pruning", "uchida_accuracy", f"results_dir={tmp_path}"]) == 0
    out = capsys.readouterr()
    assert max(map(len, out.out.splitlines()[:-4])) <= 80
    assert "held 2, failed 0, inconclusive 0" in out.out
    assert "[uchida_pruning 3 of 3] seed=2" in out.err
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [tuple(e) for e in entries] == [(*verdicts.COLUMNS, "check")] * 2
    pruning = entries[1]
    assert (pruning["name"], pruning["verdict"], pruning["data"], pruning["model"]) == (
        "uchida_pruning",
        "held",
        "digits",
        "resnet18",
    )
    assert (pruning["seeds"], pruning["run_ids"]) == ([0, 1, 2], ["r0", "r1", "r2"])
    assert pruning["criterion"] == "no_bit_lost(most=0.01)"
    assert pruning["command"] == f"python -m bench.claims uchida_pruning results_dir={tmp_path}"
    table = list(csv.DictReader((tmp_path / "tables" / "claims.csv").open()))
    assert [line["verdict"] for line in table] == ["held", "held"]
    assert table[1]["text"] == pruning["text"]
    assert pruning["text"].split(" (")[0] in (tmp_path / "tables" / "claims.md").read_text()
    assert r"\toprule" in (tmp_path / "tables" / "claims.tex").read_text()
    assert [line["published"] for line in table] == [e["published"] for e in entries]
    assert pruning["published"].startswith("uchida 100% (owner's bits, ratio 0.65: pruning, wrn_10_4, cifar10; ")
    assert "; published: uchida 100% (" in (tmp_path / "tables" / "claims.md").read_text()
    assert "published: uchida 100% (" in " ".join(out.out.split())


def test_a_failed_claim_is_a_result_and_a_failed_run_is_not(faked, capsys, tmp_path):
    faked((("ratio", 0.65, 9, 60.0),))
    assert main(["uchida_pruning", f"results_dir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "claims.json").read_text())[0]["verdict"] == "failed"
    faked(status="failed")
    assert main(["uchida_pruning", f"results_dir={tmp_path}"]) == 1
    out = capsys.readouterr()
    assert out.err.count("error: why") == 3
    (again,) = json.loads((tmp_path / "claims.json").read_text())
    assert (again["verdict"], again["text"]) == ("inconclusive", "3 of 3 runs failed: why")


def test_verdicts_of_other_claims_and_other_data_stay(faked, tmp_path):
    faked()
    for words in (["uchida_pruning"], ["uchida_accuracy"], ["uchida_pruning", "data=cifar10"], ["uchida_pruning"]):
        assert main([*words, f"results_dir={tmp_path}"]) == 0
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [(e["name"], e["data"]) for e in entries] == [
        ("uchida_accuracy", "digits"),
        ("uchida_pruning", "cifar10"),
        ("uchida_pruning", "digits"),
    ]


def test_an_interruption_keeps_what_was_judged(faked, monkeypatch, capsys, tmp_path):
    asked = faked()
    job = run.job

    def stop(cfg, say, progress, words):
        if len(asked) == 4:
            raise KeyboardInterrupt
        return job(cfg, say, progress, words)

    monkeypatch.setattr("bench.run.job", stop)
    assert main(["uchida_pruning", "uchida_accuracy", f"results_dir={tmp_path}"]) == 130
    assert [e["name"] for e in json.loads((tmp_path / "claims.json").read_text())] == ["uchida_pruning"]
    assert "interrupted" in capsys.readouterr().err


def test_a_smoke_test_leaves_the_verdict_alone(faked, capsys, tmp_path):
    faked()
    base = ["uchida_pruning", f"results_dir={tmp_path}"]
    smoke = ["train.epochs=1", "data.train_limit=100", "seed=0", "threads=1"]
    for words in ([], smoke, [*smoke[2::-1], "device=cpu", "cache.url=null"], ["force=false", "data=digits"]):
        assert main([*base, *words]) == 0
    assert "digits, data.train_limit=100, seed=0, train.epochs=1)" in " ".join(capsys.readouterr().out.split())
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [(len(e["seeds"]), e["verdict"]) for e in entries] == [(3, "held"), (1, "inconclusive")]
    assert "digits, data.train_limit=100, seed=0, train.epochs=1, 1 seeds" in (
        (tmp_path / "tables" / "claims.md").read_text().replace("\\", "")
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("method=uchida has no module"), "not judged: method=uchida has no module"),
        (ZeroDivisionError("by\nzero"), "not judged: ZeroDivisionError: by zero (debug=true shows where)"),
    ],
)
def test_a_claim_that_cannot_be_judged_stops_no_other(faked, monkeypatch, capsys, tmp_path, error, said):
    def fine_tuned(cfg):
        raise error

    faked()
    monkeypatch.setattr(invariance, "fine_tuned", fine_tuned)
    words = ["tang_finetuning", "uchida_accuracy", f"results_dir={tmp_path}"]
    assert main(words) == 1
    entries = {e["name"]: e for e in json.loads((tmp_path / "claims.json").read_text())}
    assert (entries["tang_finetuning"]["verdict"], entries["tang_finetuning"]["text"]) == (OPEN, said)
    assert entries["tang_finetuning"]["seeds"] == [0, 1, 2]
    assert entries["uchida_accuracy"]["verdict"] == HELD
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert f"error: tang_finetuning: {said.removeprefix('not judged: ')}" in err
    assert main([*words, "debug=true"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_claim_without_a_run_is_named_by_its_configuration(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.run.job", lambda *args: 1 / 0)
    assert main(["uchida_accuracy", f"results_dir={tmp_path}"]) == 1
    (entry,) = json.loads((tmp_path / "claims.json").read_text())
    assert (entry["verdict"], entry["data"], entry["model"], entry["seeds"]) == (OPEN, "digits", "resnet18", [])


def test_jobs_show_their_progress(faked, monkeypatch, tmp_path):
    shown = []

    @contextmanager
    def live(prefix=""):
        @contextmanager
        def progress(what, total):
            yield lambda: shown.append(f"{prefix}{what}/{total}")

        yield terminal.say, progress

    faked()
    monkeypatch.setattr(terminal, "live", live)
    assert main(["uchida_pruning", f"results_dir={tmp_path}"]) == 0
    assert shown == [f"[uchida_pruning {i} of 3] training/2" for i in (1, 2, 3)]


# End to end


@pytest.mark.slow
@pytest.mark.quick
def test_claims_are_run_once_and_judged(tmp_path):
    words = ["uchida_accuracy", "uchida_pruning", *TINY, "method.n_bits=64", f"results_dir={tmp_path}"]
    done = command(*words, module="bench.claims")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[:-4])) <= 80
    entries = {e["name"]: e for e in json.loads((tmp_path / "claims.json").read_text())}
    # 192 bits are too few to hold "none lost"; that one was lost can be seen.
    assert entries["uchida_pruning"]["verdict"] in ("inconclusive", "failed")
    assert "of 192 bits lost" in entries["uchida_pruning"]["text"]
    assert "points lost" in entries["uchida_accuracy"]["text"]
    files = list((tmp_path / "runs").rglob("*.json"))
    assert {p.stem for p in files} == {i for e in entries.values() for i in e["run_ids"]}
    assert len(files) == 6
    assert len(list((tmp_path / "cache" / "mark").glob("*/meta.json"))) == 3  # both claims ask of the same marks
    assert all("claim" not in json.loads(p.read_text())["config"] for p in files)

    before = {p: p.stat().st_mtime_ns for p in files}
    again = command(*words, module="bench.claims")
    assert again.returncode == 0
    assert "training" not in again.stderr
    assert again.stdout == done.stdout
    assert {p: p.stat().st_mtime_ns for p in files} == before
    report = command("--results", str(tmp_path), module="bench.report")
    assert report.returncode == 0, report.stderr
    with (tmp_path / "tables" / "rows.csv").open() as file:
        assert {line["method_label"] for line in csv.DictReader(file)} == {"uchida"}


@pytest.mark.slow
@pytest.mark.quick
def test_one_seed_is_run_and_leaves_the_verdict_open(results, tmp_path):
    words = ["uchida_accuracy", *TINY, "method.n_bits=64", "seed=0", f"results_dir={tmp_path}"]
    done = command(*words, f"cache.root={results}/cache", module="bench.claims")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "claims.json").read_text())
    assert (entry["verdict"], entry["text"]) == ("inconclusive", "1 of the 3 seeds that a verdict needs")
    assert [p.stem for p in (tmp_path / "runs").rglob("*.json")] == entry["run_ids"]


def test_help_names_every_claim_and_imports_no_torch():
    done = command("--help", module="bench.claims")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all(f"  {name} " in done.stdout for name in names())
    assert all(f"  claims/{name} " in help_text(["experiment"]) for name in names())
    probe = "import sys; from bench.claims.__main__ import main; main(['-h']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
