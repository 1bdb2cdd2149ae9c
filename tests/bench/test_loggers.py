"""Loggers, read back with their own packages: what they get, what they never cost, and what they can never break."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bench import loggers, metrics, run
from bench.errors import ConfigError
from bench.loggers.log import NUMBERS
from bench.report import labels
from bench.store.runs import read_run
from bench.types import Row
from tests.helpers import TINY, command, tiny

KINDS = ("tensorboard", "mlflow", "wandb")
LATER = (pytest.mark.slow, pytest.mark.quick)  # what the default run leaves to CI
NOISE = ("attack.sigmas=[0.1,1.0]", "data.test_limit=90")


@dataclass
class Seen:
    """A logger's run as its own package reads it: (group/name, step) -> value, and texts by row."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    numbers: dict[tuple[str, int], float] = field(default_factory=dict)
    verdicts: list[str] = field(default_factory=list)
    status: str = ""


def tensorboard(folder: Path) -> list[Seen]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    found = []
    for path in sorted((folder / "tensorboard").rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path)).Reload()
        seen = Seen()
        start = events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
        for name, value in metadata.parse_session_start_info_plugin_data(start).hparams.items():
            seen.params[name] = getattr(value, value.WhichOneof("kind"))
        for name in events.Tags()["scalars"]:
            seen.numbers |= {(name, event.step): event.value for event in events.Scalars(name)}
        for name in events.Tags()["tensors"]:
            texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(name)]
            name = name.removesuffix("/text_summary")
            if name.startswith("tags/"):
                (seen.tags[name.removeprefix("tags/")],) = texts
            elif name == "status":
                (seen.status,) = texts
            else:
                seen.verdicts += texts
        found.append(seen)
    return found


def mlflow(folder: Path) -> list[Seen]:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "watermark-bench"]
    found = []
    for one in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]):
        tags = dict(one.data.tags)
        status = {"FINISHED": "", "FAILED": "FAILED ", "KILLED": "KILLED "}[one.info.status] + tags["status"]
        seen = Seen(one.data.params, tags, status=f"{status}: {tags['message']}" if "message" in tags else status)
        for name in one.data.metrics:
            seen.numbers |= {
                (name, point.step): point.value for point in client.get_metric_history(one.info.run_id, name)
            }
        seen.verdicts = [text for name, text in tags.items() if name.startswith("verdict/")]
        found.append(seen)
    return found


def records(path: Path) -> list[Any]:
    """An offline run's records: protobuf in LevelDB's log format, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if at > len(data):
            break
        if kind in (1, 4):  # a record that is whole, or its end
            found.append(Record.FromString(whole))
            whole = b""
    return found


def wandb(folder: Path) -> list[Seen]:
    pytest.importorskip("wandb")
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for _ in range(300):  # another process writes them, and closes the file after `finish` has returned
            read = records(path)
            if "exit" in (kinds := [record.WhichOneof("record_type") for record in read]):
                break
            time.sleep(0.1)
        seen = Seen()
        for kind, record in zip(kinds, read, strict=True):
            if kind == "run":
                seen.params = {u.key: json.loads(u.value_json) for u in record.run.config.update}
                seen.tags = dict(tag.split(":", 1) for tag in record.run.tags)
            elif kind == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                step = next(value for name, value in items.items() if name.endswith("/step"))
                seen.verdicts += [value for name, value in items.items() if name.endswith("/verdict")]
                seen.numbers |= {(name, step): v for name, v in items.items() if isinstance(v, int | float)}
            elif kind == "summary":
                last = {u.key: json.loads(u.value_json) for u in record.summary.update}
                if "status" in last:
                    seen.status = f"{last['status']}: {last['message']}" if last["message"] else last["status"]
        codes = [record.exit.exit_code for kind, record in zip(kinds, read, strict=True) if kind == "exit"]
        assert codes == [int(seen.status.startswith(("failed", "interrupted")))]
        found.append(seen)
    return found


READERS: dict[str, Callable[[Path], list[Seen]]] = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


def words(kind: str) -> list[str]:
    pytest.importorskip(kind)
    return [f"logger={kind}", *(["logger.mode=offline"] if kind == "wandb" else [])]


def told(rows: list[Row], goal: str, max_damage: float) -> tuple[dict[tuple[str, int], float], list[str]]:
    """What of a run's rows a logger must hold, worked out from the rows alone."""
    numbers, verdicts, places = {}, [], {}
    for row in rows:
        step = places[row.knob] = places.get(row.knob, -1) + 1
        values = {name: getattr(row, name) for name in NUMBERS}
        if row.knob != "host" and row.utility is not None:
            values["damage"] = row.utility_victim - row.utility
        numbers |= {(f"{row.knob}/{name}", step): v for name, v in values.items() if v is not None}
        verdicts.append(metrics.verdict(vars(row), goal, max_damage))
    return numbers, verdicts


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "mlflow" else LATER) for k in KINDS])
def test_a_logger_gets_configuration_losses_rows_and_status(tmp_path, kind):
    said: list[str] = []
    cfg = tiny(tmp_path, "uchida", "noise", "train.epochs=2", *NOISE, *words(kind))
    outcome = run.job(cfg, said.append)
    assert outcome.status == "done", outcome.message
    assert not [line for line in said if line.startswith("warning: the logger")]
    (seen,) = READERS[kind](tmp_path)

    numbers, verdicts = told(outcome.rows, "removal", cfg.verify.max_damage)
    assert {name for name, _ in numbers} >= {"sigma/strength", "sigma/ber", "sigma/damage", "none/log10_p", "host/ber"}
    for key, value in numbers.items():
        assert seen.numbers[key] == pytest.approx(value, rel=1e-6), key
    losses = {key: value for key, value in seen.numbers.items() if key[0] in ("loss/host", "loss/mark")}
    assert set(losses) == {(f"loss/{stage}", epoch) for stage in ("host", "mark") for epoch in (1, 2)}
    assert all(value > 0 for value in losses.values())
    assert sorted(seen.verdicts) == sorted(verdicts)
    assert seen.status == "done"
    row = outcome.rows[0]
    tags = {
        name: getattr(row, name) for name in ("method", "attack", "model", "data", "run_id", "config_hash", "commit")
    }
    assert {name: seen.tags[name] for name in tags} == tags
    flat = {"train.epochs": 2, "method.n_bits": 64, "attack.sigmas": "[0.1, 1.0]", "seed": 0, "data.label": "digits"}
    assert {name: type(value)(seen.params[name]) for name, value in flat.items()} == flat
    assert not [name for name in seen.params if name.startswith("logger.")]

    # A run that is found done logs nothing again.
    assert run.job(cfg).status == "cached"
    assert len(READERS[kind](tmp_path)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_run_ended_is_logged(results, tmp_path, kind, monkeypatch):
    place = [*words(kind), f"logger.folder={tmp_path / 'mlruns' if kind == 'mlflow' else tmp_path}"]
    if kind == "tensorboard":
        place[-1] += "/tensorboard"
    skipped = run.job(tiny(results, "none", "overwrite", "force=true", *place))
    assert skipped.status == "skipped"

    def broken(*args: Any) -> Any:
        raise RuntimeError("the model fell off")

    monkeypatch.setattr("attacks.noise.Noise.run", broken)
    failed = run.job(tiny(results, "none", "noise", "force=true", *place))
    assert failed.status == "failed"

    def stopped(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("attacks.noise.Noise.run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.job(tiny(results, "none", "noise", "force=true", *place))
    marks = ("FAILED ", "KILLED ") if kind == "mlflow" else ("", "")
    statuses = [seen.status for seen in READERS[kind](tmp_path)]
    expected = [f"skipped: {skipped.message}", f"{marks[0]}failed: RuntimeError: the model fell off"]
    assert sorted(statuses) == sorted([*expected, f"{marks[1]}interrupted"])


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("breaks", ["open", *(pytest.param(when, marks=LATER) for when in ("first", "third", "close"))])
def test_a_logger_that_fails_costs_one_warning(results, monkeypatch, breaks):
    heard: list = []

    def log(*args: Any) -> None:
        heard.append(args)
        if breaks in ("first", "third") and len(heard) == {"first": 1, "third": 3}[breaks]:
            full()

    monkeypatch.setattr("bench.loggers.TensorBoard.__post_init__", lambda self: None)
    sink = loggers.Sink(log, full if breaks == "close" else lambda *args: heard.append(args))
    monkeypatch.setattr("bench.loggers.TensorBoard.open", full if breaks == "open" else lambda self, about: sink)
    cfg = [tiny(results, "uchida", "noise", "force=true", *NOISE, f"logger={k}") for k in ("none", "tensorboard")]
    plain = run.job(cfg[0])
    said: list[str] = []
    outcome = run.job(cfg[1], said.append)
    warnings = [line for line in said if line.startswith("warning:")]
    assert warnings == [
        "warning: the logger failed, this run goes on without it (OSError: [Errno 28] No space left on device)"
    ]
    assert (outcome.status, outcome.path) == ("done", plain.path)
    # At the end it has heard of all rows and of the random keys.
    assert len(heard) == {"open": 0, "first": 1, "third": 3, "close": len(outcome.rows) + 1}[breaks]
    # The same rows, bit for bit, apart from what they cost and when.
    cost = ("seconds", "peak_mb", "created_at")
    same = [[{k: v for k, v in vars(row).items() if k not in cost} for row in o.rows] for o in (plain, outcome)]
    assert same[0] == same[1]
    assert [row["ber"] for row in read_run(outcome.path)["rows"]] == [row.ber for row in outcome.rows]


@pytest.mark.parametrize("gone", ["from the start", "in the middle"])
@pytest.mark.parametrize("kind", ["tensorboard", pytest.param("mlflow", marks=LATER)])
def test_a_place_that_cannot_be_written_costs_one_warning(results, tmp_path, kind, gone):
    folder = tmp_path / "logs"
    if gone == "from the start":
        folder.write_text("a file")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("  sigma 0.1") and gone == "in the middle":
            assert folder.is_dir()
            shutil.rmtree(folder)

    cfg = tiny(results, "uchida", "noise", "force=true", *NOISE, *words(kind), f"logger.folder={folder}/below")
    outcome = run.job(cfg, say)
    assert outcome.status == "done"
    assert len(outcome.rows) == 4
    assert len([line for line in said if line.startswith("warning: the logger failed")]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_one_line_before_anything_is_trained(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setattr("bench.train.Fit.epochs", None)
    outcome = run.job(tiny(tmp_path, "uchida", "noise", f"logger={kind}"))
    assert outcome.code == 2
    assert outcome.message == f"logger={kind}: {kind} is not installed: pip install -e '.[{kind}]'"
    assert not [*tmp_path.iterdir()]


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as wandb leaves in the working directory
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(ConfigError, match="is not installed"):
        loggers.Wandb("p", None, "offline", str(tmp_path))


def test_passwords_and_unknown_modes_are_refused(results):
    words("mlflow")
    outcome = run.job(tiny(results, "none", "none", "logger=mlflow", "logger.uri=https://me:secret@host/"))
    assert (outcome.code, "secret" in outcome.message) == (2, False)
    if importlib.util.find_spec("wandb"):
        outcome = run.job(tiny(results, "none", "none", "logger=wandb", "logger.mode=offlne"))
        assert "did you mean 'offline'" in outcome.message


def test_wandb_without_a_key_asks_nothing_and_the_run_goes_on(results, tmp_path, monkeypatch):
    words("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    said: list[str] = []
    place = f"logger.folder={tmp_path}"
    outcome = run.job(tiny(results, "none", "none", "force=true", "logger=wandb", place), said.append)
    assert outcome.status == "done"
    (line,) = [line for line in said if line.startswith("warning: the logger")]
    assert "logger.mode=offline" in line


def test_off_imports_nothing_and_is_in_no_hash_and_no_label(results, monkeypatch):
    for kind in KINDS:
        monkeypatch.setitem(sys.modules, kind, None)
    assert run.job(tiny(results, "none", "none", "force=true")).status == "done"
    for kind in KINDS:
        monkeypatch.setattr(f"bench.loggers.{kind}.installed", lambda package: None)
    hashes = {run.prepare(tiny(results, "uchida", "prune", f"logger={k}")).hashes for k in ("none", *KINDS)}
    assert len(hashes) == 1

    # One method under two attacks, of which one run was logged: one row of the tables.
    content = read_run(run.job(tiny(results, "uchida", "noise", *NOISE)).path)
    other = json.loads(json.dumps(content))
    for row in other["rows"]:
        row |= {"attack": "prune", "config_hash": "another"}
    logger = tiny(results, "uchida", "noise", "logger=tensorboard").logger
    other["config"]["logger"] = OmegaConf.to_container(logger) | {"folder": "elsewhere"}
    assert set(labels.variants([content, other])["method_label"]) == {"uchida"}


@pytest.mark.slow
@pytest.mark.quick
def test_each_job_of_a_parallel_sweep_has_its_own_run(tmp_path):
    sweep = ["-m", "launcher=joblib", *TINY, "train.epochs=1", "method=none", "attack=none,noise", *words("mlflow")]
    done = command(*sweep, f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "warning: the logger" not in done.stderr
    seen = mlflow(tmp_path)
    assert sorted(one.tags["attack"] for one in seen) == ["noise", "none"]
    assert [one.status for one in seen] == ["done", "done"]
