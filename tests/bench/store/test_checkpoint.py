"""A killed stage goes on from where it was kept, to the same bits as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from bench import run, spec, stages
from bench.store.checkpoint import Checkpoint
from tests.helpers import COMPLETE, MARKING, ROOT, TINY, config, first, restoration, tiny

NO_WAIT = "train.checkpoint=0"  # after every epoch
CIFARNET = ("model=cifarnet", "model.widths=[24,64,64]")


class Killed(BaseException):
    """What no `except Exception` catches."""


def killing(monkeypatch, saves: int) -> None:
    """The process ends when it has kept its state so many times."""
    save, count = Checkpoint.save, [0]

    def last(self, *args):
        save(self, *args)
        count[0] += 1
        if count[0] == saves:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", last)


def killed(x, monkeypatch, saves: int) -> None:
    with monkeypatch.context() as patch:
        killing(patch, saves)
        with pytest.raises(Killed):
            stages.mark(x, warn=False)


def same(a, b) -> bool:
    """Weights, key and utility of two entries."""
    for name in ("model.safetensors", "key.safetensors"):
        one, two = (load_file(entry.path / name) for entry in (a, b))
        if one.keys() != two.keys() or not all(torch.equal(one[k], two[k]) for k in one):
            return False
    return a["utility"] == b["utility"]


def prepared(folder, words, say=lambda line: None):
    return run.prepare(tiny(folder, *words), say)


@pytest.mark.parametrize("method", first([m for m in MARKING if m != "tattooed"]))  # which trains nothing
@pytest.mark.parametrize(
    "more",
    [
        ("train.optimizer=adamw", "train.precision=float32"),
        # Two groups of parameters, and layouts that change.
        ("train.optimizer=sgd", "train.precision=bfloat16", "train.bias_rate=2", *CIFARNET),
    ],
)
def test_every_method_goes_on_to_the_same_bits(tmp_path, monkeypatch, method, more):
    more += ("train.epochs=3", "train.lr=0.002", "train.label_smoothing=0.1")
    words, lines = (method, "none", *more, NO_WAIT), []
    if "every" in tiny(tmp_path, method, "none").method:
        words += ("method.every=1",)
    x = prepared(tmp_path, words, lines.append)
    if not x.method.from_scratch:
        stages.host(x)
    for saves in (1, 1):
        killed(x, monkeypatch, saves)
    (partial,) = (tmp_path / "cache" / "mark").glob("*.partial")
    again = stages.mark(x, warn=False)
    assert [line for line in lines if "going on" in line] == [
        f"  going on after epoch {n} of 3, kept when it was stopped" for n in (1, 2)
    ]
    assert not partial.exists()
    assert again["seconds"] > 0
    undisturbed = stages.mark(prepared(tmp_path / "other", (*words, "train.checkpoint=null")), warn=False)
    assert same(again, undisturbed)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("saves", [2, 5])
def test_a_stage_of_several_trainings_goes_on(tmp_path, picture_folder, monkeypatch, saves):
    small = ["method.epochs=3", "method.surrogate_epochs=2", "method.surrogates=1", "method.tune_epochs=1"]
    words = [*restoration(picture_folder), "method=boxfree", "attack=none", "train.epochs=1", *small]

    def made(folder, *more):
        return run.prepare(config(*words, "method.adversarial=true", f"results_dir={folder}", *more))

    x = made(tmp_path / "a", NO_WAIT)
    stages.host(x)  # here, not in the mark's own process: no draw of the mark's may depend on it
    killed(x, monkeypatch, saves)
    kept = [*(tmp_path / "a" / "cache" / "mark").glob("*.partial/*")]
    assert [p.name for p in sorted(kept)] == ["1.safetensors", "2.safetensors"][: 1 if saves < 4 else 2]
    undisturbed = stages.mark(made(tmp_path / "b", "train.checkpoint=null"), warn=False)
    assert same(stages.mark(x, warn=False), undisturbed)


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_what_cannot_be_read_is_said_and_trained_again(tmp_path, monkeypatch, damage):
    lines: list[str] = []
    x = prepared(tmp_path, ("uchida", "none", "train.epochs=2", NO_WAIT), lines.append)
    killed(x, monkeypatch, 1)
    (file,) = (tmp_path / "cache" / "mark").glob("*.partial/1.safetensors")
    if damage is None:  # another network's
        y = prepared(
            tmp_path / "y", ("uchida", "none", "model.name=resnet10t", "train.lr=0.001", "train.epochs=2", NO_WAIT)
        )
        killed(y, monkeypatch, 1)
        (other,) = (tmp_path / "y" / "cache" / "mark").glob("*.partial/1.safetensors")
        other.replace(file)
    else:
        file.write_bytes(damage)
    again = stages.mark(x, warn=False)
    assert sum("cannot go on from" in line and "training from the start" in line for line in lines) == 1
    undisturbed = stages.mark(prepared(tmp_path / "o", ("uchida", "none", "train.epochs=2")), warn=False)
    assert same(again, undisturbed)


def test_a_full_disk_stops_no_training(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.store.checkpoint.save_file", full)
    lines: list[str] = []
    assert stages.mark(
        prepared(tmp_path, ("uchida", "none", "train.epochs=2", NO_WAIT), lines.append), warn=False
    ).built
    assert sum("no checkpoint: cannot write" in line for line in lines) == 2


def test_short_stages_write_nothing_and_no_address_knows_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "save", lambda *args: pytest.fail("kept"))
    x = prepared(tmp_path, ("uchida", "none", "train.epochs=1"))
    assert x.train.checkpoint == 10
    assert stages.mark(x, warn=False).built
    for more in ("train.checkpoint=0", "train.checkpoint=null"):
        y = prepared(tmp_path, ("uchida", "none", "train.epochs=1", more))
        assert y.run_id == x.run_id
        assert spec.digest(y.mark_identity) == spec.digest(x.mark_identity)


@pytest.mark.parametrize(
    "seed", [pytest.param(0), pytest.param(1, marks=COMPLETE), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_command_killed_at_random_goes_on(tmp_path, seed):
    words = [*TINY, "method=none", "attack=none", "train.epochs=16", NO_WAIT, f"results_dir={tmp_path}/a"]
    process = [sys.executable, "-m", "bench", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    wait = random.Random(seed).uniform(0.0, 1.0)
    begun = subprocess.Popen(process, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "a" / "cache" / "host"
    while not [*folder.glob("*.partial/1.safetensors")]:
        assert begun.poll() is None
        time.sleep(0.01)
    time.sleep(wait)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    after = subprocess.run(process, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert after.returncode == 0, after.stderr
    assert "going on after epoch" in after.stderr
    assert not [*folder.glob("*.partial")]
    whole = [word.replace(f"{tmp_path}/a", f"{tmp_path}/b") for word in process]
    subprocess.run([*whole, "train.checkpoint=null"], cwd=ROOT, env=env, capture_output=True, timeout=300, check=True)
    (a,), (b,) = ([*(tmp_path / side / "cache" / "host").glob("*/meta.json")] for side in "ab")
    assert json.loads(a.read_text())["sha256"] == json.loads(b.read_text())["sha256"]
    assert load_file(a.with_name("model.safetensors"))
