"""Claims: the files in conf/experiment/claims, and the command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench import claims, invariance, run, terminal, verdicts
from bench.criteria import CRITERIA
from bench.evidence import HELD, OPEN, Run, enough
from bench.types import ConfigError
from bench.usage import help_text
from tests.conftest import ROOT, TINY, command, config, tiny
from tests.test_criteria import ALPHA, one, seeds


def test_all_claims_share_hosts_and_marks():
    """One training schedule and one data set: what costs time is done once for all of them."""
    found = {str((cfg.train, cfg.data)) for cfg in map(first, claims.names())}
    assert len(found) == 1
    plain = config()
    assert found == {str((plain.train, plain.data))}


def first(name: str):
    return config(f"experiment=claims/{name}")


@pytest.mark.parametrize("name", claims.names())
def test_a_claims_file_says_what_its_criterion_needs(name):
    claim = claims.read(name, ["results_dir=unused"])
    assert claim.paper
    assert len(claim.text.split()) > 4
    assert claim.criterion in CRITERIA
    axes = {}
    for words in claim.jobs:
        for word in words[1:]:
            key, _, value = word.partition("=")
            axes.setdefault(key, set()).add(value)
    assert len(axes["seed"]) >= claims.SEEDS
    # What it compares is what it sweeps.
    if axis := claim.parameters.get("axis"):
        named = ("better", "worse", "resists", "falls", "fails", "succeeds")
        compared = {str(v) for k, v in claim.parameters.items() if k in named}
        assert compared <= axes[axis]
        assert len(axes[axis]) > 1
    if knobs := claim.parameters.get("knobs"):
        source = (ROOT / "attacks" / f"{first(name).attack._target_.split('.')[1]}.py").read_text()
        assert all(f'"{knob}"' in source for knob in knobs)


def test_a_claim_is_in_no_hash(tmp_path):
    plain = run.prepare(tiny(tmp_path, "uchida", "none"))
    claimed = run.prepare(tiny(tmp_path, "uchida", "none", "experiment=claims/uchida_accuracy"))
    assert "claim" in claimed.cfg
    assert claimed.hashes() == plain.hashes()


@pytest.mark.slow
@pytest.mark.quick
def test_what_the_files_suggest_and_sweep_can_be_decided():
    """As many marks as a count needs, on the command lines in comments too."""
    tried = 0
    for name in claims.names():
        text = (ROOT / "conf" / "experiment" / "claims" / f"{name}.yaml").read_text()
        lines = [line.split()[4:] for line in text.splitlines() if line.startswith("#   python -m bench.claims ")]
        for words in ([name], *lines):
            claim = claims.read(words[0], words[1:])
            tried += len(words) > 1
            if claim.criterion == "verified_everywhere":
                assert len(claim.jobs) >= enough(claim.parameters["least"])
            elif claim.criterion == "forged_only":
                rate = claim.parameters["rate"]
                assert len(claim.jobs) / 2 >= max(enough(rate), enough(1 - rate))
    assert tried == 1


def test_a_value_given_twice_is_one_run():
    assert len(claims.read("uchida_pruning", ["seed=0,1,1"]).jobs) == 2


def test_an_axis_on_the_command_line_replaces_the_files():
    claim = claims.read("neuralmark_families", ["model=vgg13_bn", "seed=5,6", "train.epochs=3"])
    assert [words[1:] for words in claim.jobs] == [
        ["model=vgg13_bn", f"seed={seed}", "train.epochs=3"] for seed in (5, 6)
    ]
    assert claim.command == "python -m bench.claims neuralmark_families model=vgg13_bn seed=5,6 train.epochs=3"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["uchida_prunin"], "unknown claim 'uchida_prunin'; did you mean 'uchida_pruning'"),
        (["uchida_pruning", "method.nbits=3"], "method.nbits: no such key; did you mean 'n_bits'"),
        (["uchida_pruning", "data=cifar11"], "unknown data 'cifar11'; did you mean 'cifar10'"),
        (["uchida_pruning", "seed=interval(0,3)"], "an interval cannot be enumerated"),
        (
            ["uchida_pruning", "claim.criterion.name=no_bits"],
            "criterion=no_bits: not known; did you mean 'no_bit_lost'",
        ),
        (["uchida_pruning", "+claim.criterion.least=3"], "got an unexpected keyword argument 'least'"),
        (["experiment=digits"], "chooses the experiment itself"),
        (["--force"], "--force: no such flag"),
        (["uchida_accuracy", "method=uchida,neuralmark"], "method=uchida,neuralmark: a verdict is on one value of it"),
        (["uchida_pruning", "method.n_bits=64,256"], "method.n_bits=64,256: a verdict is on one value of it"),
        (
            ["neuralmark_rounds", "train.epochs=1,2"],
            "one value of it; method.rounds and seeds may",
        ),
        (
            ["uchida_pruning", "launcher=joblib"],
            "python -m bench experiment=claims/NAME launcher=joblib makes",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.setattr("bench.run.job", None)
    assert claims.main([*words, f"results_dir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_list_of_claims_is_said_before_anything_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.run.job", None)
    for content in ("{", '{"a": 1}', '[{"name": "x"}]'):
        (tmp_path / "claims.json").write_text(content)
        assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 1
        assert "holds no claims" in capsys.readouterr().err
        assert (tmp_path / "claims.json").read_text() == content


# What no criterion is asked about


def outcomes(runs: list[Run], status="done", message="") -> list:
    return [(r.config, run.Outcome(status, r.rows, message=message)) for r in runs]


def judged(done) -> tuple[str, str]:
    claim = claims.read("uchida_pruning", ["results_dir=unused"])
    found = claims.judge(claim, done)
    return found.verdict, found.text


def test_runs_that_allow_no_verdict_give_none():
    good = seeds([("ratio", 0.65, 0, 60.0)])
    assert judged(outcomes(good))[0] == HELD
    failed = [*outcomes(good[:2]), *outcomes(good[2:], "failed", "no space left")]
    assert judged(failed) == (OPEN, "1 of 3 runs failed: no space left")
    lost = [*outcomes(good[:2]), (good[2].config, run.Outcome("failed", [], message="no such layer"))]
    assert judged(lost) == (OPEN, "1 of 3 runs failed: no such layer")
    assert judged(outcomes(good, "skipped", "needs bits")) == (OPEN, "3 of 3 runs skipped: needs bits")
    assert judged(outcomes(good[:2])) == (OPEN, "2 of the 3 seeds that a verdict needs")
    bare = [*good[:2], *seeds([("ratio", 0.65, 0, 60.0)], victim={"wrong": 128})[2:]]
    assert judged(outcomes(bare)) == (OPEN, "the mark did not take in 1 of 3 victims (uchida on resnet18: BER 0.50)")


def test_a_control_that_detects_gives_no_verdict():
    runs = seeds([("ratio", 0.65, 0, 60.0)])
    x = SimpleNamespace(verify=SimpleNamespace(alpha=ALPHA), method=SimpleNamespace(boundary=None))
    alarm = [replace(runs[0].rows[0], detected=True), *runs[0].rows[1:]]
    keys = {"random_keys": 1000, "false_positives": 9}
    for rows, found, said in ((alarm, None, "the unmarked host"), (runs[0].rows, keys, "9 of 1,000 random keys")):
        outcome = run.concluded(x, "cached", rows, found, None)  # as the pipeline reports it
        verdict, text = judged([(runs[0].config, outcome), *outcomes(runs[1:])])
        assert verdict == OPEN
        assert text.startswith(f"1 of 3 runs failed: control failed: {said} ")


# The command, on rows made by hand


@pytest.fixture
def faked(monkeypatch):
    """run.job without a run: points as given, for each seed."""
    asked = []

    def fake(points=(("ratio", 0.65, 0, 60.0),), status="done"):
        def job(cfg, say, progress):
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
    assert claims.main(["uchida_pruning", "uchida_accuracy", f"results_dir={tmp_path}"]) == 0
    out = capsys.readouterr()
    assert max(map(len, out.out.splitlines()[:-4])) <= 80
    assert "held 2, failed 0, inconclusive 0" in out.out
    assert "[uchida_pruning 3 of 3] seed=2" in out.err
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [tuple(e) for e in entries] == [verdicts.COLUMNS] * 2
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


def test_a_failed_claim_is_a_result_and_a_failed_run_is_not(faked, capsys, tmp_path):
    faked((("ratio", 0.65, 9, 60.0),))
    assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "claims.json").read_text())[0]["verdict"] == "failed"
    faked(status="failed")
    assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 1
    out = capsys.readouterr()
    assert out.err.count("error: why") == 3
    (again,) = json.loads((tmp_path / "claims.json").read_text())
    assert (again["verdict"], again["text"]) == ("inconclusive", "3 of 3 runs failed: why")


def test_verdicts_of_other_claims_and_other_data_stay(faked, tmp_path):
    faked()
    for words in (["uchida_pruning"], ["uchida_accuracy"], ["uchida_pruning", "data=cifar10"], ["uchida_pruning"]):
        assert claims.main([*words, f"results_dir={tmp_path}"]) == 0
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [(e["name"], e["data"]) for e in entries] == [
        ("uchida_accuracy", "digits"),
        ("uchida_pruning", "cifar10"),
        ("uchida_pruning", "digits"),
    ]


def test_an_interruption_keeps_what_was_judged(faked, monkeypatch, capsys, tmp_path):
    asked = faked()
    job = run.job

    def stop(cfg, say, progress):
        if len(asked) == 4:
            raise KeyboardInterrupt
        return job(cfg, say, progress)

    monkeypatch.setattr("bench.run.job", stop)
    assert claims.main(["uchida_pruning", "uchida_accuracy", f"results_dir={tmp_path}"]) == 130
    assert [e["name"] for e in json.loads((tmp_path / "claims.json").read_text())] == ["uchida_pruning"]
    assert "interrupted" in capsys.readouterr().err


def test_a_smoke_test_leaves_the_verdict_alone(faked, capsys, tmp_path):
    faked()
    base = ["uchida_pruning", f"results_dir={tmp_path}"]
    smoke = ["train.epochs=1", "data.train_limit=100", "seed=0", "threads=1"]
    for words in ([], smoke, [*smoke[2::-1], "device=cpu", "cache.url=null"], ["force=false", "data=digits"]):
        assert claims.main([*base, *words]) == 0
    assert "digits, data.train_limit=100, seed=0, train.epochs=1)" in " ".join(capsys.readouterr().out.split())
    entries = json.loads((tmp_path / "claims.json").read_text())
    assert [(len(e["seeds"]), e["verdict"]) for e in entries] == [(3, "held"), (1, "inconclusive")]
    assert "digits, data.train_limit=100, seed=0, train.epochs=1, 1 seeds" in (
        (tmp_path / "tables" / "claims.md").read_text().replace("\\", "")
    )


def test_processes_that_write_at_once_lose_no_verdict(tmp_path):
    path = tmp_path / "claims.json"

    def entry(i):
        return dict.fromkeys(verdicts.COLUMNS, "x") | {"name": f"claim{i:02}"}

    threads = [threading.Thread(target=verdicts.remember, args=(path, entry(i))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e["name"] for e in verdicts.read(path)] == [f"claim{i:02}" for i in range(12)]


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
    assert claims.main(words) == 1
    entries = {e["name"]: e for e in json.loads((tmp_path / "claims.json").read_text())}
    assert (entries["tang_finetuning"]["verdict"], entries["tang_finetuning"]["text"]) == (OPEN, said)
    assert entries["tang_finetuning"]["seeds"] == [0, 1, 2]
    assert entries["uchida_accuracy"]["verdict"] == HELD
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert f"error: tang_finetuning: {said.removeprefix('not judged: ')}" in err
    assert claims.main([*words, "debug=true"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_claim_without_a_run_is_named_by_its_configuration(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.run.job", lambda *args: 1 / 0)
    assert claims.main(["uchida_accuracy", f"results_dir={tmp_path}"]) == 1
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
    assert claims.main(["uchida_pruning", f"results_dir={tmp_path}"]) == 0
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
    assert all(f"  {name} " in done.stdout for name in claims.names())
    assert all(f"  claims/{name} " in help_text() for name in claims.names())
    probe = "import sys; from bench import claims; claims.main(['-h']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
