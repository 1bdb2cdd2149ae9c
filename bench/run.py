"""One experiment, from its configuration to its rows: host, mark, attack, judge, run file. Read `rows` first.

`job` is a plain function of a composed configuration, so that tests, the command line and launchers call it alike.
"""

from __future__ import annotations

import itertools
import platform
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

import bench
from bench import controls, gallery, loggers, machine, metrics, spec, stages, threat
from bench.errors import ConfigError, UserError
from bench.experiment import Experiment, prepare
from bench.gallery import Gallery, Sketch, Writings
from bench.judge import Judge
from bench.progress import Progress, Say, silent, unseen
from bench.store.cache import noted, used
from bench.store.runfile import BrokenRun, write_run
from bench.store.runs import read_run
from bench.train import Fit
from bench.types import Attack, Row, Snapshot

# Of the configuration: what is asked of a run (conf/experiment/claims) or was published of it is no part of it.
BESIDE = ("claim", "expected")


@dataclass
class Made:
    """What a run makes: rows, what the random keys did, and for a mark in pictures what they measure."""

    rows: list[Row]
    controls: dict[str, Any] | None
    outputs: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: done, cached, skipped or failed; rows, the run file, an exit status, the method's boundary,
    what the random keys did; for a mark in pictures what they measure; a figure."""

    status: str
    rows: list[Row]
    path: Path | None = None
    message: str = ""
    code: int = 0
    boundary: float | None = None
    controls: dict[str, Any] | None = None
    outputs: list[dict[str, Any]] | None = None
    figure: Path | None = None


def rows(x: Experiment, shown: Gallery | Sketch | Writings | None = None) -> Iterator[Row]:
    """The controls (host under the owner's key, and for a mark in pictures the inputs and what they should become), the
    victim, then one row per snapshot of the attack; at last, where an attack has a `twin`, the same on the host.
    """
    # The mark first: it draws its key, and so refuses what cannot be, before anything is trained.
    entry = stages.mark(x) if x.method.marks else stages.host(x)
    unmarked = stages.baseline(x)
    victim, key = stages.opened(x, entry)
    utilities = {"utility_host": unmarked["utility"], "utility_victim": entry["utility"]}
    # A method that adds a module is tried on the host with an innocent one.
    host = stages.load_weights(stages.skeleton(x), unmarked.path) if x.method.marks else victim
    utilities |= controls.confidence(x, host, victim, *utilities.values())
    judge = Judge(x, key, utilities, shown, committed=victim)
    if x.method.marks:
        yield judge.row(Snapshot("host", None, host), **stages.cost(unmarked))
    own = judge.row(Snapshot("none", None, victim), **stages.cost(entry))
    yield own
    judge = replace(judge, utilities={**utilities, "marked": own.detected})
    if controls.in_pictures(x):
        for task, snapshot in controls.clean(x):
            yield judge.control(task, snapshot)
    yield from points(judge, x.attack, victim, entry["utility"])
    if controls.in_pictures(x) and x.attack.twin:
        yield from points(judge, x.attack.twin, host, unmarked["utility"], "clean/")


def points(judge: Judge, attack: Attack, model: nn.Module, own: float, prefix: str = "") -> Iterator[Row]:
    """A row per snapshot of an attack on a model, whose `own` utility is known; knobs begin with `prefix`."""
    x, utilities = judge.x, judge.utilities
    robbed = threat.stolen(x, model, judge.key, lambda: stages.public(x))
    if reason := threat.out_of_reach(x) or attack.skip(robbed):
        yield x.row("none", status="skipped", error=reason, **utilities)
        return
    name = spec.kind(attack)
    draws = np.random.default_rng(spec.derive(attack.seed, "attack", name))
    # The rates of an attack are made for all parameters alike.
    train = replace(x.train, bias_rate=1.0)
    fit = Fit(train, spec.derive(attack.seed, "attack", name, "fit"), may_diverge=True, progress=x.progress)
    steps = counted(x, attack.run(robbed, draws, fit))
    seconds, same = 0.0, {"utility": own}
    while True:
        started = machine.start(x.device)
        snapshot = next(steps, None)
        if snapshot is None:
            return
        took, peak = machine.stop(x.device, started)
        if snapshot.skipped:
            about = {"strength": snapshot.strength, "status": "skipped", "error": snapshot.skipped}
            yield x.row(snapshot.knob, **about, **utilities)
            continue
        took += seconds if snapshot.continues else 0.0
        seconds = round(took if snapshot.seconds is None else snapshot.seconds, 3)
        untouched = snapshot.model is robbed.model
        snapshot = replace(snapshot, knob=f"{prefix}{snapshot.knob}")
        row = judge.row(snapshot, **(same if untouched else {}), seconds=seconds, peak_mb=peak)
        if untouched:  # as often as it is claimed, it is one network
            same["utility_validation"] = row.utility_validation
        x.say(f"  {snapshot.knob} {'' if snapshot.strength is None else f'{snapshot.strength:g}'}: {_brief(row)}")
        yield row


def counted(x: Experiment, snapshots: Iterator[Snapshot]) -> Iterator[Snapshot]:
    """The attack's snapshots, counted: each is done when the next one is asked for."""
    lists = {name: value for name, value in vars(x.attack).items() if isinstance(value, list) and name != "knows"}
    first = next(snapshots, None)
    if first is None:
        return
    # How many there will be is known of an attack that has one list of strengths and goes through it.
    total = len(lists[f"{first.knob}s"]) if [*lists] == [f"{first.knob}s"] else None
    with x.progress(x.attack_name, total) as done:
        for snapshot in itertools.chain([first], snapshots):
            yield snapshot
            done()


def _brief(row: Row) -> str:
    error, how = metrics.reading(vars(row))
    owner = "" if error is None else f"BER {error:.3f}{f' ({how})' if how else ''}, "
    claim = "" if row.claim_ber is None else f"claim BER {row.claim_ber:.3f}, "
    return f"{owner}{claim}{row.utility_name} {row.utility:.2f}"


@noted()
def run(cfg: DictConfig, say: Say = silent, progress: Progress = unseen, words: list[str] | None = None) -> Outcome:
    """Run one experiment, or find it done. Raises UserError (and what debugging needs) for what goes wrong.

    `words`: what composed the configuration, after `python -m bench`; the run file records them.
    """
    x = prepare(cfg, say, progress, words)
    if not x.options.force and (known := finished(x)):
        return concluded(x, "cached", known)
    with loggers.logged(x.logger, lambda: about(x), say) as log:
        outcome = concluded(x, "done", recorded(replace(x, log=log)))
        log.close(outcome.status, outcome.message)
    return outcome


def recorded(x: Experiment) -> Made:
    """All that a run makes, written to its file; where something goes wrong, the rows so far and a failed one."""
    shown = gallery.of(x, controls.in_pictures(x))
    made = Made([], None, shown and shown.numbers)
    try:
        for row in rows(x, shown):
            made.rows.append(row)
            x.log.row(row, x.attack.goal, x.verify.max_damage)
        made.controls = controls.random_keys(x)
        x.log.controls(made.controls)
    except Exception as error:
        error = machine.out_of_memory(error) or error
        if not isinstance(error, ConfigError):
            line = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
            made.rows.append(x.row("none", status="failed", error=" ".join(line.split())))
            write(x, made)
        raise error
    write(x, made)
    if shown is not None:
        shown.draw(gallery.path(x), f"{x.method_name}, {x.attack_name}: {x.data.name}, seed {x.seed}")
    return made


def about(x: Experiment) -> loggers.About:
    """What a logger is told of a run before it begins."""
    run_id, config_hash = x.hashes
    name = {"method": x.method_name, "attack": x.attack_name, "model": x.model.title, "data": x.data.name}
    config = {key: node for key, node in resolved(x).items() if key != "logger"}
    tags = {"run_id": run_id, "config_hash": config_hash, "commit": machine.commit() or "unknown"}
    return loggers.About(f"{' '.join(name.values())} seed {x.seed}", config, {**name, **tags})


def concluded(x: Experiment, status: str, made: Made) -> Outcome:
    """The outcome of a run that went through; a control that detects is a failed benchmark all the same."""
    tried = made.controls or {"random_keys": 0, "false_positives": None}
    why = ""
    if alarms := [row.knob for row in made.rows if metrics.is_control(row.knob) and row.detected]:
        what = {"host": "the unmarked host verifies"}.get(alarms[0], f"{alarms[0]}, which is unmarked, verifies")
        why = f"{what} under the owner's key"
    elif metrics.false_alarm(tried["false_positives"], tried["random_keys"], x.verify.alpha):
        why = f"{tried['false_positives']:,} of {tried['random_keys']:,} random keys verify on the victim"
    if why:
        status, code, message = "failed", 1, f"control failed: {why}, so no verdict of this run holds"
    else:
        # That of a whole run: a single strength may be skipped, and the run still counts.
        skipped = (row.error or "" for row in made.rows if row.status == "skipped" and row.knob == "none")
        code, message = 0, next(skipped, "")
        status = "skipped" if message else status
    figure = drawn if (drawn := gallery.path(x).with_suffix(".png")).is_file() else None
    return Outcome(status, made.rows, x.path, message, code, x.method.boundary, made.controls, made.outputs, figure)


def finished(x: Experiment) -> Made | None:
    """A run that need not be repeated: its file is there, whole, or compacted, and nothing in it failed; or None."""
    try:
        run = read_run(x.path)
        made = Made([Row(**row) for row in run["rows"]], run["controls"], run.get("outputs"))
    except FileNotFoundError:
        return None
    except (UserError, TypeError) as error:
        if isinstance(error, UserError) and not (isinstance(error, BrokenRun) and x.path.exists()):
            # A file that may be whole must not be written over, nor a broken parquet be mended by running all again.
            raise
        x.say(f"{error}; running it again")
        return None
    if not made.rows or any(row.status == "failed" for row in made.rows):
        return None
    if x.expected and run.get("expected") != x.expected:  # made before that was known, or without the experiment
        try:
            about = (run["config"], run["env"], run["command"])
            more = made.outputs, x.expected, x.attack.knobs, run.get("stages")
            write_run(x.path, *about, made.controls, made.rows, *more)
        except UserError as error:
            x.say(f"warning: what is published of this run was not noted in its file: {error}")
    return made


def resolved(x: Experiment) -> dict[str, Any]:
    """The configuration of a run as plain values."""
    return {key: node for key, node in OmegaConf.to_container(x.cfg, resolve=True).items() if key not in BESIDE}


def write(x: Experiment, made: Made) -> None:
    env = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "bench": bench.__version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": np.__version__,
        "device": machine.device_name(x.device),
        "threads": machine.threads(),
    }
    about = (resolved(x), env, x.words)
    more = made.outputs, x.expected, x.attack.knobs, used()
    write_run(x.path, *about, made.controls, made.rows, *more)


def job(cfg: DictConfig, say: Say = silent, progress: Progress = unseen, words: list[str] | None = None) -> Outcome:
    """`run`, with every error turned into an outcome of one line; debug=true shows the traceback as well."""
    try:
        return run(cfg, say, progress, words)
    except Exception as error:
        if str(cfg.get("debug")).lower() == "true":  # not parsed yet when the configuration itself is at fault
            traceback.print_exc(file=sys.stderr)
        error = machine.out_of_memory(error) or error
        if isinstance(error, UserError):
            return Outcome("failed", [], message=str(error), code=error.code)
        line = f"{type(error).__name__}: {' '.join(str(error).split())} (debug=true shows where)"
        return Outcome("failed", [], message=line, code=1)
