"""One experiment from configuration to rows: host, mark, attack, measure, run file.

`job` is a plain function of a composed configuration, so that tests, the command line and launchers call it alike.
"""

from __future__ import annotations

import itertools
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_model, save_model
from torch import nn

import bench
from bench import branches, cache, controls, gallery, loggers, metrics, resources, spec, store, threat
from bench.experiment import Experiment, commit, device_name, prepare, silent
from bench.keys import load_key, save_key
from bench.terminal import Progress, unseen
from bench.train import Fit
from bench.types import Attack, ConfigError, Key, Row, Snapshot, Task, UserError
from methods import layers


@dataclass(frozen=True)
class Outcome:
    """How a job ended: done, cached, skipped or failed; rows, the run file, an exit status, the method's boundary,
    what the random keys did; for a mark in outputs what its pictures measure, and their figure."""

    status: str
    rows: list[Row]
    path: Path | None = None
    message: str = ""
    code: int = 0
    boundary: float | None = None
    controls: dict[str, Any] | None = None
    outputs: list[dict[str, Any]] | None = None
    figure: Path | None = None


def host(x: Experiment) -> cache.Entry:
    """The network trained without a mark, by its content's address."""

    def build(folder: Path) -> dict[str, Any]:
        x.say(f"host: training {x.model.title} on {x.data.name}, seed {x.seed}, {x.train.epochs} epochs")
        model = fresh(x)
        return make(x, folder, lambda: owner_fit(x, "host")(model, x.task.view("owner")))[1]

    return cache.cached(x.cache, "host", x.host_identity, build, x.say)


def mark(x: Experiment) -> cache.Entry:
    """The marked network and its key; says when bits are missing."""
    entry = _mark(x)
    if entry["ber"] > 0:
        x.say(
            f"warning: the embedding is incomplete: {round(entry['ber'] * entry['n_bits'], 1):g} of "
            f"{entry['n_bits']} bits are wrong; raise the epochs or the method's strength"
        )
    return entry


def _mark(x: Experiment) -> cache.Entry:
    """keygen, embed, and a check."""

    def build(folder: Path) -> dict[str, Any]:
        scratch = getattr(x.method, "situation", None) == "scratch"
        # The key first: a layer too small for the message should cost a second, not an epoch.
        model = skeleton(x)
        key = x.method.keygen(model, rng(x.seed, "owner", "key"))
        if not scratch:
            load_weights(model, host(x).path)
        where = f"{len(key.where)} layers" if len(key.where) > 3 else ", ".join(key.where) or "its outputs"
        x.say(f"mark: embedding {spec.kind(x.method)}, {key.n_bits} bits in {where}")
        fit = owner_fit(x, "mark")
        model, measured = make(x, folder, lambda: x.method.embed(model, key, x.task.view("owner"), fit))
        save_key(key, folder / "key.safetensors", spec.kind(x.method), x.method.version)
        soft = x.method.extract(model, key, x.task.view("owner")).cpu()
        error, weakest = metrics.ber(soft, key.message), metrics.weakest(soft, key.message)
        x.say(f"mark: BER {error:.4g}, the weakest bit is read at {weakest:.3f} (0.5: undecided, 1: certain)")
        return measured | {"ber": error, "weakest": weakest, "n_bits": key.n_bits}

    return cache.cached(x.cache, "mark", x.mark_identity, build, x.say)


def make(x: Experiment, folder: Path, train: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    """Train a stage's network, save it, measure it: utility, and what training alone cost."""
    started = resources.start(x.device)
    model = train()
    seconds, peak = resources.stop(x.device, started)
    save_model(model, str(folder / "model.safetensors"))
    cost = {"seconds": seconds, "peak_mb": peak, "device": device_name(x.device)}
    return model, {"utility": evaluate(x, x.task, model), **cost}


def evaluate(x: Experiment, task: Task, model: nn.Module) -> float:
    with x.progress("measuring", None):
        return task.utility(model)


def fresh(x: Experiment, role: str = "owner") -> nn.Module:
    return x.task.build(x.model, spec.derive(x.seed, role, "init"))


def skeleton(x: Experiment, role: str = "owner") -> nn.Module:
    """`fresh`, with what the method adds to the architecture."""
    return x.method.extend(fresh(x, role), x.task, spec.derive(x.seed, role, "extend"))


def owner_fit(x: Experiment, stage: str = "mark") -> Fit:
    # Host and mark share initialisation and batches: their difference is the method's alone.
    seed = spec.derive(x.seed, "owner", "fit")
    return Fit(x.train, seed, say=x.say, what=f"{stage}: training", progress=x.progress, log=x.log.losses(stage))


def rng(seed: int, *roles: object) -> np.random.Generator:
    return np.random.default_rng(spec.derive(seed, *roles))


def load_weights(model: nn.Module, folder: Path) -> nn.Module:
    """A stage's weights; where `model` has a method's module and the stage (a host) does not, it stays untrained."""
    missing, unexpected = load_model(model, str(folder / "model.safetensors"), strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.startswith(f"{branches.NAME}."))]
    if wrong:
        raise UserError(f"{folder} does not hold this network: {len(wrong)} tensors differ, first {wrong[0]}")
    return model.eval()


def victim(x: Experiment, entry: cache.Entry) -> tuple[nn.Module, Key | None]:
    """The network that is attacked, and its owner's key; without a mark, the host and None."""
    key = load_key(entry.path / "key.safetensors") if x.method.marks else None
    return load_weights(skeleton(x), entry.path), key


def attack_rows(x: Experiment) -> Iterator[Row]:
    """The controls (host under the owner's key, and for a mark in outputs the inputs and what they should become), the
    victim, then one row per snapshot of the attack; at last, where an attack has a `twin`, the same on the host.
    """
    # The mark first: it draws its key, and so refuses what cannot be, before anything is trained.
    entry = mark(x) if x.method.marks else host(x)
    unmarked = host(x)
    victim_model, key = victim(x, entry)
    utility = {"utility_host": unmarked["utility"], "utility_victim": entry["utility"]}
    if x.method.marks:
        # A method that adds a module is tried on the host with an innocent one.
        control = Snapshot("host", None, load_weights(skeleton(x), unmarked.path))
        yield measure(x, control, key, utility | cost(unmarked))
    yield measure(x, Snapshot("none", None, victim_model), key, utility | cost(entry))
    outputs = x.method.marks and x.method.access == "outputs"
    if outputs:
        yield from untouched(x, key, utility)
    yield from attacked_rows(x, x.attack, victim_model, key, utility, entry["utility"])
    if outputs and (twin := x.attack.twin):
        yield from attacked_rows(x, twin, control.model, key, utility, unmarked["utility"], "clean/")


def untouched(x: Experiment, key: Key, utility: dict[str, Any]) -> Iterator[Row]:
    """Controls of a mark in pictures: the inputs, and the pictures they should become, as if a network gave them."""
    identity = gallery.identity(x)
    run_id, config_hash = x.hashes()  # undegraded pictures are no other task
    for name, task in (("inputs", x.task), ("truth", x.task.undegraded())):
        row = measure(replace(x, task=task, gallery=None), Snapshot(f"clean/{name}", None, identity), key, utility)
        yield replace(row, run_id=run_id, config_hash=config_hash)


def attacked_rows(
    x: Experiment,
    attack: Attack,
    model: nn.Module,
    key: Key | None,
    utility: dict[str, Any],
    own: float,
    prefix: str = "",
) -> Iterator[Row]:
    """A row per snapshot of an attack on a model, whose `own` utility is known; knobs begin with `prefix`."""
    robbed = threat.stolen(x, model, key)
    if reason := threat.out_of_reach(x) or attack.skip(robbed):
        yield x.row("none", status="skipped", error=reason, **utility)
        return
    name = spec.kind(attack)
    fit = Fit(x.train, spec.derive(attack.seed, "attack", name, "fit"), may_diverge=True, progress=x.progress)
    steps = watched(x, attack.run(robbed, rng(attack.seed, "attack", name), fit))
    seconds = 0.0
    while True:
        started = resources.start(x.device)
        snapshot = next(steps, None)
        if snapshot is None:
            return
        took, peak = resources.stop(x.device, started)
        if snapshot.skipped:
            yield x.row(snapshot.knob, strength=snapshot.strength, status="skipped", error=snapshot.skipped, **utility)
            continue
        seconds = round(took + (seconds if snapshot.continues else 0.0), 3)
        known = {"utility": own} if snapshot.model is robbed.model else {}
        snapshot = replace(snapshot, knob=f"{prefix}{snapshot.knob}")
        row = measure(x, snapshot, key, {**utility, **known, "seconds": seconds, "peak_mb": peak})
        x.say(f"  {snapshot.knob} {'' if snapshot.strength is None else f'{snapshot.strength:g}'}: {_brief(row)}")
        yield row


def watched(x: Experiment, snapshots: Iterator[Snapshot]) -> Iterator[Snapshot]:
    """The attack's snapshots, counted: each is done when the next one is asked for."""
    lists = {name: value for name, value in vars(x.attack).items() if isinstance(value, list) and name != "knows"}
    first = next(snapshots, None)
    if first is None:
        return
    # How many there will be is known of an attack that has one list of strengths and goes through it.
    total = len(lists[f"{first.knob}s"]) if [*lists] == [f"{first.knob}s"] else None
    with x.progress(spec.kind(x.attack), total) as done:
        for snapshot in itertools.chain([first], snapshots):
            yield snapshot
            done()


def cost(entry: cache.Entry) -> dict[str, Any]:
    """Utility of a stage and what it cost to make, whenever and wherever that was."""
    return {name: entry[name] for name in ("utility", "seconds", "peak_mb", "device")}


def _brief(row: Row) -> str:
    owner = "" if row.ber is None else f"BER {row.ber:.3f}, "
    claim = "" if row.claim_ber is None else f"claim BER {row.claim_ber:.3f}, "
    return f"{owner}{claim}{row.utility_name} {row.utility:.2f}"


def measure(x: Experiment, snapshot: Snapshot, key: Key | None, known: dict[str, Any]) -> Row:
    """One row: the owner's bits, the claim's if there is one, and utility, unless it is `known` already."""
    values = {"utility_name": x.task.utility_name, **known}
    task = x.task
    if snapshot.moved:
        # Utility is now the other data set's, and there is no victim or host to compare with.
        task = x.other
        values |= {"utility_name": f"{task.utility_name}@{task.name}", "utility_victim": None, "utility_host": None}
    if "utility" not in values:
        values["utility"] = evaluate(x, task, snapshot.model)
    if key is not None:
        error, log10_p, ok = judge(x, snapshot.model, key)
        values |= {"n_bits": key.n_bits, "ber": error, "log10_p": log10_p, "detected": ok}
        if x.gallery:
            x.gallery.add(x, snapshot.model, key, snapshot.knob, snapshot.strength)
    if snapshot.claim is not None:
        error, log10_p, ok = judge(x, snapshot.model, snapshot.claim)
        values |= {"claim_ber": error, "claim_log10_p": log10_p, "claim_detected": ok}
    return x.row(snapshot.knob, strength=snapshot.strength, **values)


def judge(x: Experiment, model: nn.Module, key: Key) -> tuple[float, float, bool]:
    """(BER, log10 p, detected) of one claim: bits match at p <= alpha, and every prescribed check passes."""
    # A network of another architecture has no such weights: no evidence, which is half an error a bit.
    soft = x.method.extract(model, key, x.task) if carries(x, model, key) else torch.full((key.n_bits,), 0.5)
    error, log10_p = x.method.evidence(soft, key)
    return error, log10_p, metrics.is_detected(log10_p, x.verify.alpha) and x.method.accepts(key)


def carries(x: Experiment, model: nn.Module, key: Key) -> bool:
    """Whether a suspect has the weights that the key names, in the shapes of the marked network."""
    try:
        return all(layers.read(model, name).shape == x.shapes[name] for name in key.where)
    except AttributeError:
        return False


def run(cfg: DictConfig, say: Callable[[str], None] = silent, progress: Progress = unseen) -> Outcome:
    """Run one experiment, or find it done. Raises UserError (and what debugging needs) for what goes wrong."""
    x = prepare(cfg, say, progress)
    run_id, _ = x.hashes()
    path = store.run_path(x.results, spec.kind(x.method), spec.kind(x.attack), run_id)
    if not x.options.force and (known := finished(path, say)):
        rows = [Row(**row) for row in known["rows"]]
        return concluded(x, "cached", rows, known["controls"], path, known.get("outputs"))
    with loggers.logged(x.logger, lambda: about(x), say) as log:
        shown = gallery.Gallery() if x.method.access == "outputs" else None
        rows, found = attacked(x := replace(x, log=log, gallery=shown), path)
        outcome = concluded(x, "done", rows, found, path, shown and shown.numbers)
        log.close(outcome.status, outcome.message)
    return outcome


def attacked(x: Experiment, path: Path) -> tuple[list[Row], dict[str, Any] | None]:
    """All rows of a run and what the random keys did, written to its file; where something goes wrong, the rows so far
    and a failed one."""
    rows: list[Row] = []
    found = None
    try:
        for row in attack_rows(x):
            rows.append(row)
            x.log.row(row, x.attack.goal, x.verify.max_damage)
        found = controls.random_keys(x, lambda: victim(x, _mark(x)), lambda: skeleton(x, "stranger"))
        x.log.controls(found)
    except Exception as error:
        if not isinstance(error, ConfigError):
            line = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
            rows.append(x.row("none", status="failed", error=" ".join(line.split())))
            write(x, path, None, rows)
        raise
    write(x, path, found, rows)
    if x.gallery:
        x.gallery.draw(gallery.path(x), f"{spec.kind(x.method)}, {spec.kind(x.attack)}: {x.data.name}, seed {x.seed}")
    return rows, found


def about(x: Experiment) -> loggers.About:
    """What a logger is told of a run before it begins."""
    run_id, config_hash = x.hashes()
    name = {"method": spec.kind(x.method), "attack": spec.kind(x.attack), "model": x.model.title, "data": x.data.name}
    config = {key: node for key, node in OmegaConf.to_container(x.cfg, resolve=True).items() if key != "logger"}
    tags = {"run_id": run_id, "config_hash": config_hash, "commit": commit() or "unknown"}
    return loggers.About(f"{' '.join(name.values())} seed {x.seed}", config, {**name, **tags})


def concluded(
    x: Experiment,
    status: str,
    rows: list[Row],
    found: dict[str, Any] | None,
    path: Path,
    outputs: list[dict[str, Any]] | None = None,
) -> Outcome:
    """The outcome of a run that went through; a control that detects is a failed benchmark all the same."""
    tried = found or {"random_keys": 0, "false_positives": None}
    why = ""
    if alarms := [row.knob for row in rows if metrics.is_control(row.knob) and row.detected]:
        what = {"host": "the unmarked host verifies"}.get(alarms[0], f"{alarms[0]}, which is unmarked, verifies")
        why = f"{what} under the owner's key"
    elif metrics.false_alarm(tried["false_positives"], tried["random_keys"], x.verify.alpha):
        why = f"{tried['false_positives']:,} of {tried['random_keys']:,} random keys verify on the victim"
    if why:
        status, code, message = "failed", 1, f"control failed: {why}, so no verdict of this run holds"
    else:
        code, message = 0, skip_reason(rows)
        status = "skipped" if message else status
    drawn = gallery.path(x).with_suffix(".png") if outputs else None
    shown = drawn if drawn and drawn.is_file() else None
    return Outcome(status, rows, path, message, code, x.method.boundary, found, outputs, shown)


def skip_reason(rows: list[Row]) -> str:
    """Why a whole run was skipped (a single strength may be, and the run still counts), or an empty string."""
    return next((row.error or "" for row in rows if row.status == "skipped" and row.knob == "none"), "")


def finished(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """A run that need not be repeated: its file is there, whole, or compacted, and nothing in it failed; or None."""
    try:
        run = store.read_run(path)
        rows = [Row(**row) for row in run["rows"]]
    except FileNotFoundError:
        return None
    except (UserError, TypeError) as error:
        if isinstance(error, UserError) and not path.exists():
            raise  # the parquet of all compacted runs is broken: that is not mended by running them all again
        say(f"{error}; running it again")
        return None
    return run if rows and not any(row.status == "failed" for row in rows) else None


def write(x: Experiment, path: Path, found: dict[str, Any] | None, rows: list[Row]) -> None:
    config = OmegaConf.to_container(x.cfg, resolve=True)
    config.pop("claim", None)  # of conf/experiment/claims: what is asked of the run is no part of it
    env = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "bench": bench.__version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": np.__version__,
        "device": device_name(x.device),
        "threads": torch.get_num_threads(),
    }
    store.write_run(path, config, env, found, rows, x.gallery and x.gallery.numbers)


def job(cfg: DictConfig, say: Callable[[str], None] = silent, progress: Progress = unseen) -> Outcome:
    """`run`, with every error turned into an outcome of one line; debug=true shows the traceback as well."""
    try:
        return run(cfg, say, progress)
    except Exception as error:
        if str(cfg.get("debug")).lower() == "true":  # not parsed yet when the configuration itself is at fault
            traceback.print_exc(file=sys.stderr)
        if isinstance(error, UserError):
            return Outcome("failed", [], message=str(error), code=error.code)
        line = f"{type(error).__name__}: {' '.join(str(error).split())} (debug=true shows where)"
        return Outcome("failed", [], message=line, code=1)
