"""What must not verify: the host and, for a mark in outputs, whatever else is clean; keys that nobody embedded.

One that does makes every verdict of its run worthless; so does a host that is worth nothing (`confidence`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import gallery, metrics, stages
from bench.errors import UserError
from bench.experiment import Experiment
from bench.progress import PAUSE, SURE, lasting
from bench.store.cache import cached
from bench.types import Key, Snapshot, Task

VERSION = 3  # 2: keys drawn for another network; 3: p-values by the method's own null
CHECKED = 3  # keys that are read a second time, by the method's own extract


def in_pictures(x: Experiment) -> bool:
    """Whether the mark is read from pictures: every network gives some, and more controls are due."""
    return x.method.marks and x.method.access == "outputs" and x.task.gives == "pictures"


def clean(x: Experiment) -> Iterator[tuple[Task, Snapshot]]:
    """Controls of a mark in pictures: the inputs, and what they should become, as if a network gave them; each with the
    task whose pictures it is judged on."""
    identity = gallery.identity(x)
    for name, task in (("inputs", x.task), ("truth", x.task.undegraded())):
        yield task, Snapshot(f"clean/{name}", None, identity)


def confidence(
    x: Experiment, host: nn.Module, victim: nn.Module, utility_host: float, utility_victim: float
) -> dict[str, Any]:
    """What the test split can say, as rows have it (Task.confidence). Measured once for each mark."""

    def build(_: object) -> dict[str, Any]:
        with x.progress("measuring", None):
            found = x.task.confidence(host, victim, utility_host, utility_victim)
        return dict(zip(("log10_p_host", "utility_half"), found, strict=True))

    identity = {**x.mark_identity, "confidence": 1}
    entry = cached(x.cache, "control", identity, build, x.say)
    return {"tested": x.task.size("test"), **entry.meta["measured"]}


def random_keys(x: Experiment) -> dict[str, Any] | None:
    """`verify.keys` keys, message and secret drawn by strangers for a network of their own (same architecture, other
    weights), tried on the marked one.

    Returns {random_keys, false_positives, mean_ber, least_log10_p}: how many were tried and verified, what they read.
    None for a method without a mark, or without keys to draw, or no keys.
    Verification is the judge's, with every check the method prescribes.
    Measured once for each mark, whatever attacks follow; alpha is applied afterwards.
    """
    if not x.method.marks or not x.verify.keys:
        return None

    def build(_: object) -> dict[str, Any]:
        return tried(x, *stages.opened(x, stages.mark(x, warn=False)), stages.skeleton(x, "stranger"))

    identity = {**x.mark_identity, "keys": x.verify.keys, "control": VERSION}
    read = cached(x.cache, "control", identity, build, x.say)
    if not read["ber"]:
        return None
    found = {"random_keys": len(read["ber"]), "false_positives": passed(read, x.verify.alpha, x.readings)}
    return found | {"mean_ber": float(np.mean(read["ber"])), "least_log10_p": min(read["log10_p"])}


def passed(read: Mapping[str, Any], alpha: float, readings: int = 1) -> int:
    """How many of the keys that were `tried` verify, alpha shared among so many readings."""
    found = [metrics.is_detected(p, alpha, readings) for p in read["log10_p"]]
    return sum(ok and accepted for ok, accepted in zip(found, read["accepts"], strict=True))


def _warned(x: Experiment, each: float) -> None:
    """Say what the rest will take where a key takes so many seconds that somebody may rather try fewer."""
    if (rest := each * (x.verify.keys - SURE)) > PAUSE:
        fewer = max(1, x.verify.keys // 10)
        x.say(f"control: {each:.2g} s a key, about {lasting(rest)} for all; verify.keys={fewer} tries fewer")


def tried(x: Experiment, model: nn.Module, own: Key, other: nn.Module) -> dict[str, Any]:
    """BER, p-value and acceptance of every key. Raises UserError where `trials` reads other bits than `extract`."""
    x.say(f"control: {x.verify.keys:,} random keys on {x.method_name}'s mark")
    draws = x.rng("judge", "keys")
    errors, p_values, accepts = [], [], []
    started = time.monotonic()
    with torch.inference_mode(), x.progress("random keys", x.verify.keys) as step:
        for key, soft in x.method.trials(model, own, other, draws, x.verify.keys, x.task):
            error, log10_p = x.method.evidence(soft, key)
            errors.append(error)
            p_values.append(log10_p)
            if len(errors) <= CHECKED and error != metrics.ber(x.method.extract(model, key, x.task), key.message):
                kind = x.method_name
                raise UserError(f"{kind}.trials reads other bits than {kind}.extract: it controls another detector")
            accepts.append(bool(x.method.accepts(key)))
            step()
            if len(errors) == SURE:
                _warned(x, (time.monotonic() - started) / SURE)
    return {"ber": errors, "log10_p": p_values, "accepts": accepts}
