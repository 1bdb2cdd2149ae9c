"""The commands of the README, in a folder of their own, as a newcomer would type them."""

from __future__ import annotations

import json

import joblib
import pytest

from bench.types import ROW_FIELDS
from tests.helpers import ROOT, TINY, command

SMALL = [*TINY, "method=neuralmark", "method.n_bits=64", "method.k=128"]


def test_one_command_gives_the_table_and_one_more_the_plots(tmp_path):
    done = command(*SMALL, "attack=prune", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert max(map(len, table)) <= 80
    assert [line.split()[0] for line in table[3:5]] == ["host", "none"]
    assert table[5].startswith("ratio ")
    assert [line[9:].split()[0] for line in table[5:14]] == [f"0.{i}" for i in range(1, 10)]
    (path,) = (tmp_path / "results" / "runs" / "neuralmark" / "prune").glob("*.json")
    assert str(path.relative_to(tmp_path)) in done.stdout

    content = json.loads(path.read_text())
    assert list(content) == ["config", "env", "command", "controls", "knobs", "stages", "rows", "check"]
    assert content["command"] == [*SMALL, "attack=prune"]
    assert content["controls"].items() >= {"random_keys": 1000, "false_positives": 0}.items()
    assert content["config"]["method"]["n_bits"] == 64
    assert {"python", "torch", "timm", "device", "threads"} <= set(content["env"])
    assert all(tuple(row) == ROW_FIELDS for row in content["rows"])
    host, victim = content["rows"][:2]
    assert victim["ber"] == 0
    assert victim["detected"] is True
    assert host["detected"] is False
    assert abs(host["utility"] - victim["utility"]) <= 2

    again = command(*SMALL, "attack=prune", cwd=tmp_path)
    assert "(was there already)" in again.stdout
    assert "training" not in again.stderr
    assert json.loads(path.read_text()) == content

    report = command("method=neuralmark", cwd=tmp_path, module="bench.report")
    assert report.returncode == 0, report.stderr
    assert sorted(p.name for p in (tmp_path / "results" / "figures").iterdir()) == ["prune.png", "prune.svg"]


@pytest.mark.slow
@pytest.mark.quick
def test_layers_are_listed_with_their_sizes(tmp_path):
    done = command("model=timm", "model.name=test_resnet", f"results_dir={tmp_path}", module="bench.layers")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    starred = [line.split() for line in done.stdout.splitlines() if line.startswith("*  ")]
    assert ["*", "layer3.0.conv2", "48x48x3x3", "20,736", "432"] in starred
    assert command("model=resnet81", module="bench.layers").returncode == 2


@pytest.mark.slow
@pytest.mark.quick
def test_sharpness_is_measured_on_marked_and_on_random_weights(tmp_path):
    words = [*TINY, "train.epochs=1", "method=watermas", "method.n_bits=64", f"results_dir={tmp_path}"]
    done = command(*words, module="bench.studies.sharpness")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[:-3])) <= 80
    (table,) = (tmp_path / "tables").glob("sharpness-watermas-test_resnet-digits-*.csv")
    lines = [line.split(",") for line in table.read_text().splitlines()]
    assert lines[0] == ["weights", "draw", "sigma", "loss", "top1"]
    assert {line[0] for line in lines[1:]} == {"marked", "random", "no sharpening; marked", "no sharpening; random"}
    untouched = {line[3] for line in lines[1:] if line[2] == "0.0" and line[0] in ("marked", "random")}
    assert len(untouched) == 1  # noise of size 0 is the victim itself, whichever weights get it
    assert len(list((tmp_path / "figures").iterdir())) == 2
    bad = command(*TINY, "method=none", f"results_dir={tmp_path}", module="bench.studies.sharpness")
    assert (bad.returncode, bad.stderr.strip()) == (2, "error: method=none marks nothing")


@pytest.mark.slow
@pytest.mark.quick
def test_a_method_is_two_files(tmp_path):
    """A stranger's method, in another folder: no edit here, and every command finds it."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "third.yaml").write_text(
        "# a third party's\n_target_: third.Third\nn_bits: 64\n", encoding="utf-8"
    )
    (tmp_path / "third.py").write_text(
        '''
from dataclasses import dataclass
import torch
from bench.types import Key, Method
from bench.models.weights import choose, read

@dataclass(frozen=True)
class Third(Method):
    """Writes bits into the signs of the first weights."""
    n_bits: int

    def keygen(self, host, rng, task):
        name = choose(host, None, torch.Tensor.numel, self.n_bits, "weights")
        return Key(torch.from_numpy(rng.integers(0, 2, self.n_bits).astype(bool)), {}, (name,))

    @torch.no_grad()
    def embed(self, host, key, task, fit):
        w = host.get_parameter(key.where[0]).view(-1)[: self.n_bits]
        w.copy_(torch.where(key.message, w.abs() + 1e-3, -w.abs() - 1e-3))
        return host

    def extract(self, model, key, task):
        return torch.sigmoid(read(model, key.where[0]).detach().reshape(-1)[: self.n_bits])
''',
        encoding="utf-8",
    )
    words = ["--config-dir", "conf", *TINY, "train.epochs=1", "method=third", "attack=prune", "attack.ratios=[0.5]"]
    done = command(*words, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("third on test_resnet, digits, seed 0")
    (path,) = (tmp_path / "results" / "runs" / "third" / "prune").glob("*.json")
    assert json.loads(path.read_text())["command"] == ["--config-dir", str(tmp_path / "conf"), *words[2:]]


@pytest.mark.slow
@pytest.mark.quick
def test_joblib_workers_share_cache_and_cores_and_are_counted(tmp_path, monkeypatch):
    """Two processes that need the same host train it once; the sweep's end counts the jobs of both."""
    monkeypatch.delenv("OMP_NUM_THREADS")  # it would be the user's own choice of threads
    words = ["launcher=joblib", "-m", *TINY, "train.epochs=1", "method=uchida,none", "attack=prune,none"]
    done = command(*words, f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "done 4, cached 0, skipped 0, failed 0" in done.stdout
    hosts = [p for p in (tmp_path / "cache" / "host").iterdir() if p.is_dir()]
    assert len(hosts) == 1
    assert (done.stdout + done.stderr).count("host: training") == 1
    assert (done.stdout + done.stderr).count("mark: embedding") == 1
    runs = [json.loads(p.read_text()) for p in (tmp_path / "runs").rglob("*.json")]
    assert len(runs) == 4
    assert {run["env"]["threads"] for run in runs} == {max(1, joblib.cpu_count() // 2)}
    (notes,) = (tmp_path / "sweeps").glob("*/jobs.json")
    jobs = [note["job"].split() for note in json.loads(notes.read_text())]
    assert [job[0] for job in jobs] == ["attack=prune"] * 2 + ["attack=none"] * 2
