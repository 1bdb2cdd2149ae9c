"""What users break and machines do: one line, exit status 1 or 2, nothing half-written, and the next run goes on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from bench import run, stages
from bench.errors import UserError
from bench.store import cache
from bench.store.files import write_json
from bench.store.runs import read_run
from tests.helpers import ROOT, TINY, command, config, tiny

TINY_WORDS = [*TINY, "train.epochs=2", "method=uchida", "method.n_bits=64", "attack=prune", "attack.ratios=[0.5]"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=uchda"], "did you mean 'uchida'? valid: boxfree, deepsigns, frequency"),
        (["attack=prun"], "did you mean 'prune' or"),
        (["model=resnet81"], "did you mean 'resnet18'"),
        (["data=digit"], "did you mean 'digits'?"),
        (["experiment=nope"], "unknown experiment 'nope'"),
        (["method.lamda_=3"], "method.lamda_: no such key; did you mean 'lambda_'?"),
        (["sed=3"], "did you mean 'seed'"),
        (["+method.extra=3"], "method.extra: no such key"),
        (["train=fast", "train.finetune={momentum:0.5}"], "add one, ++train.finetune.NAME=VALUE"),
        (["seed=1,2"], "add -m"),
        (["attack.ratios=[0.1"], "cannot read attack.ratios=[0.1"),
        (["model=timm"], "model.name has no value: give model.name=..."),
        (["data=parquet"], "data.path has no value"),
        (["-m", "attack=prune,prun"], "did you mean 'prune' or"),
        (["seed=abc"], "seed"),
        (["seed=0..3"], "seed=0..3: write -m 'seed=range(0,4)'"),
        (["-m", "seed=0-3"], "seed=0-3: write 'seed=range(0,4)'"),
        (["-m", "seed=0,0"], "seed=0,0: 0 stands there twice"),
        (["threads=0"], "threads=0: must be from 1"),
        (["verify.alpha=0.5"], "verify.alpha=0.5: must be in (0, 0.05]"),
        (["--method", "uchida"], "--method: write method=uchida"),
        (["--attack.scope=layer"], "--attack.scope: write attack.scope=layer"),
        (["--multi-run"], "--multi-run: no such flag; did you mean '--multirun'"),
        (["attack.ratios=0.5"], "attack.ratios=0.5: takes a list: 'attack.ratios=[0.5]'"),
        (["attack.ratios=0.5,0.7"], "attack.ratios=0.5,0.7: takes a list: 'attack.ratios=[0.5,0.7]'"),
        (["device=gpu"], "device=gpu: write device=cuda"),
        (["device=gpu:1"], "device=gpu:1: write device=cuda:1"),
        (["model=timm", "model.name=resnet18.a1_in1k"], "it would be trained from scratch: write model.name=resnet18,"),
        (["-m", "seed=interval(0,1)"], "an interval cannot be enumerated"),
        (["-m", "attack=glob(zz*)"], "attack=glob(zz*) matches nothing"),
        (["train.lr=fast"], "train.lr: Value 'fast' of type 'str' could not be converted to Float"),
        (["train.epochs=1.5"], "train.epochs: Value '1.5' of type 'float' could not be converted to Integer"),
        (["train.optimizer=sdg"], "train.optimizer=sdg: not known; did you mean 'sgd'?"),
        (["attack.ratios=[0.5,1.5]"], "attack.ratios"),
        (["attack.scope=glob"], "did you mean 'global'?"),
        (["attack.knows=[wait]"], "attack.knows=wait"),
        (["verify.alpha=0"], "verify.alpha=0.0: must be in (0, 0.05]"),
        (["model=timm", "model.name=resnet_18"], "timm has no such model; did you mean"),
        (["model=torchvision", "model.name=resnet81"], "torchvision has no such model; did you mean"),
        (["model.checkpoint=no/where.safetensors"], "model.checkpoint=no/where.safetensors: no such file"),
        (["model=vit_tiny", "model.stem=small"], "has no stem to exchange"),
        (["data=parquet", "data.path=no/where"], "data.path=no/where: no such folder"),
        (["data=imagefolder", "data.path=no/where"], "data.path=no/where: no such folder"),
        (["data.attacker=1.5"], "data.attacker=1.5: must be in [0, 1)"),
        (["device=cuda:77"], "device=cuda:77 is not to be had here"),
        (["method=uchida", "method.n_bits=100000"], "carries 2,304"),
        (["method.layer=layer4.9.conv1"], "matches no convolution or linear layer; did you mean"),
        (["method=neuralmark", "method.layer=conv1"], "needs 16,384 weights (k=512 x 2^4 filter rounds x 2), but"),
        (
            ["method=neuralmark", "method.n_bits=300000"],
            "needs 9,600,000 weights (n_bits=300000 x 2^4 filter rounds x 2)",
        ),
        (["force=no_idea"], "force: Value 'no_idea'"),
        (["attack=overwrite", "attack.knows=[weights]"], "attack.knows must list method"),
        (["attack=finetune", "attack.transfer=cifar100"], "data@attack.transfer=cifar100"),
        (["attack=finetune", "data@attack.transfer=digits"], "is the same data set"),
        (["attack=finetune", "data@attack.transfer=parquet", "attack.transfer.path=nowhere"], "no such folder"),
        (["launcher=pbs"], "unknown launcher 'pbs'"),
        (["task=detection"], "unknown task 'detection'"),
    ],
)
def test_one_line_names_what_is_valid(capsys, monkeypatch, tmp_path, words, expected):
    """In this process, for speed; the same paths as `python -m bench`. Nothing here may get as far as training."""
    from bench.cli import usage

    monkeypatch.setattr("bench.train.Fit.epochs", None)

    words = [*words, f"results_dir={tmp_path}", *([] if any(w.startswith("device") for w in words) else ["device=cpu"])]
    line = usage.problem(words)
    if not line:
        outcome = run.job(config(*[w for w in words if w != "-m"]))
        assert outcome.status == "failed"
        assert outcome.code == 2
        line = outcome.message
    assert expected in line
    assert "\n" not in line
    assert not (tmp_path / "runs").exists()


def test_help_names_every_choice_and_imports_no_torch():
    done = command("--help", "all")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for group in ("method", "attack", "model", "data"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert any(
                line.split()[:1] == [path.stem] and len(line.split()) > 2 for line in done.stdout.splitlines()
            ), path
    probe = "import sys; from bench.cli.help import help_text; help_text(['all']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)


@pytest.mark.parametrize("words", [["method=uchda"], ["method=uchida", "method.n_bits=100000", "device=cpu"]])
def test_the_command_exits_without_a_traceback(tmp_path, words):
    done = command(*words, f"results_dir={tmp_path}")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.quick
def test_debug_shows_the_traceback(tmp_path):
    done = command("method=uchida", "method.n_bits=100000", "device=cpu", "debug=true", f"results_dir={tmp_path}")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_no_network_is_one_line(monkeypatch, tmp_path):
    from urllib.error import URLError

    import torchvision

    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", offline)
    outcome = run.job(tiny(tmp_path, "uchida", "prune", "data=cifar10"))
    assert outcome.code == 1
    assert "no network? Put cifar-10-python.tar.gz into" in outcome.message
    assert not list((tmp_path / "cache" / "data").glob("*/"))


@pytest.mark.parametrize("stage", ["data", "host", "mark"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "meta"])
def test_a_corrupt_cache_is_reported_and_made_again(tmp_path_factory, capsys, stage, damage):
    results = tmp_path_factory.getbasetemp() / "corrupt"
    cfg = tiny(results, "uchida", "prune", "force=true", "train.epochs=1")
    before = run.run(cfg).rows
    (folder,) = [p for p in (results / "cache" / stage).iterdir() if p.is_dir()]
    victim = folder / ("images.safetensors" if stage == "data" else "model.safetensors")
    content = victim.read_bytes()
    if damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        victim.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "delete":
        victim.unlink()
    else:
        (folder / "meta.json").write_text("{")
    said = []
    after = run.run(cfg, said.append).rows
    assert [s for s in said if f"{stage}/{folder.name} is corrupt" in s]
    assert [(r.knob, r.strength, r.ber, r.utility) for r in after] == [
        (r.knob, r.strength, r.ber, r.utility) for r in before
    ]


def test_a_broken_run_file_is_run_again(results):
    cfg = tiny(results, "uchida", "prune", "seed=5", "train.epochs=1")
    outcome = run.run(cfg)
    outcome.path.write_text('{"config": {}, "rows": [')
    said = []
    again = run.run(cfg, said.append)
    assert again.status == "done"
    assert any("is not a run file" in line for line in said)
    read_run(outcome.path)


@pytest.mark.parametrize("by", ["python", "safetensors"])
def test_a_full_disk_leaves_nothing_behind(monkeypatch, tmp_path, by):
    def full(*args, **kwargs):
        if by == "safetensors":  # which has an error of its own for it
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    cfg = tiny(tmp_path, "uchida", "prune", "train.epochs=1")
    monkeypatch.setattr(stages, "save_model", full)
    outcome = run.job(cfg)
    assert outcome.code == 1
    assert "no space left" in outcome.message.lower()
    assert "nothing was left half-written" in outcome.message
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "cache" / "mark").iterdir() if p.suffix != ".lock"]
    assert run.job(cfg).status == "done"

    if by == "safetensors":
        return
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(UserError, match="nothing was left half-written"):
            write_json(tmp_path / "x" / "y.json", {"a": 1})
    assert not list((tmp_path / "x").iterdir())


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run.job(tiny(tmp_path / "file", "uchida", "prune"))
    assert outcome.code == 1
    assert "cannot write" in outcome.message
    assert "results_dir=" in outcome.message


def test_failed_attacks_are_recorded_and_tried_again(monkeypatch, tmp_path):
    from attacks.prune import Prune

    def broken(self, victim, rng, fit):
        raise RuntimeError("out of\nluck")

    cfg = tiny(tmp_path, "uchida", "prune", "train.epochs=1")
    with monkeypatch.context() as patched:
        patched.setattr(Prune, "run", broken)
        outcome = run.job(cfg)
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "RuntimeError: out of luck" in outcome.message
    (path,) = (tmp_path / "runs").rglob("*.json")
    assert read_run(path)["rows"][-1]["status"] == "failed"
    assert run.job(cfg).status == "done"
    assert {row["status"] for row in read_run(path)["rows"]} == {"ok"}


def test_diverging_owner_is_told_so(tmp_path):
    outcome = run.job(tiny(tmp_path, "uchida", "prune", "train.optimizer=sgd", "train.lr=1e8"))
    assert outcome.code == 1
    assert "training diverged in epoch 1" in outcome.message
    assert "lower train.lr" in outcome.message


@pytest.mark.slow
@pytest.mark.quick
def test_a_kill_in_the_middle_leaves_nothing_and_the_next_run_goes_on(tmp_path):
    words = [*TINY_WORDS, "train.epochs=200", f"results_dir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:  # wait until it trains
        if line.startswith("mark: embedding"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    aside = list((tmp_path / "cache" / "mark").glob(".*.tmp"))
    assert len(aside) == 1
    assert not (tmp_path / "runs").exists()
    done = command(*TINY_WORDS, f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    # the same address again: what the killed build left aside goes
    stale = tmp_path / "cache" / "mark" / ".0123456789abcdef.1.tmp"
    stale.mkdir()
    cache._publish(stale.with_name("0123456789abcdef"), {}, lambda folder: {})
    assert not stale.exists()


def test_interrupt_is_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *TINY_WORDS, "train.epochs=200", f"results_dir={tmp_path}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("mark: embedding"):
            process.send_signal(signal.SIGINT)
            break
    said.append(process.stderr.read())
    assert process.wait() == 130
    assert "Traceback" not in "".join(said)
    assert not list((tmp_path / "cache" / "mark").glob(".*.tmp"))


def test_two_processes_train_a_stage_once(tmp_path):
    built, results = [], []

    def build(folder: Path) -> dict:
        built.append(folder)
        time.sleep(0.5)
        (folder / "x").write_text("x")
        return {"n": len(built)}

    def ask() -> None:
        results.append(cache.cached(tmp_path, "stage", {"a": 1}, build))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(built) == 1
    assert [r["n"] for r in results] == [1] * 4
    assert sum(r.built for r in results) == 1


@pytest.mark.slow
@pytest.mark.quick
def test_a_sweep_counts_its_jobs_and_names_the_failed(tmp_path):
    words = [
        "-m", *TINY, "train.epochs=1", f"results_dir={tmp_path}",
        "method=uchida", "attack=prune,none", "method.n_bits=64,100000",
    ]  # fmt: skip
    done = command(*words)
    assert done.returncode == 1
    assert "done 2, cached 0, skipped 0, failed 2" in done.stdout
    assert done.stdout.count("  failed: ") == 2
    assert "method.n_bits=100000: the message needs 100,000" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 2
    good = [*words[:-1], "method.n_bits=64"]
    again = command(*good)
    assert again.returncode == 0
    assert "done 0, cached 2, skipped 0, failed 0" in again.stdout
    (record,) = [p for p in (tmp_path / "sweeps").glob("*/jobs.json") if len(json.loads(p.read_text())) == 4]
    assert [job["status"] for job in json.loads(record.read_text())].count("failed") == 2
