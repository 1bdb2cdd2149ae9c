"""Attacks in sequence: each starts from the network that the one before it left."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from bench import machine, spec
from bench.errors import ConfigError, choice, near
from bench.metrics import Knob
from bench.types import Attack, Fit, Snapshot, Task, Victim


@dataclass(frozen=True)
class Chain(Attack):
    """The attacks that `steps` names, one on the other; the points of the last are rows, whose seconds have those of
    all that they were made from.

    options: attacks by name, each a conf/attack node with the options of its own; their own seeds are not used, all
    draws come from the chain's. at: for a step which of its points the next one starts from, `KNOB STRENGTH`; where
    none is named, the last that could be made.
    knows, data: exactly what the steps together need; they are filled in, and what goes beyond them is refused.
    """

    steps: list[str]
    options: dict[str, Any]
    at: dict[str, str]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ConfigError("attack.steps is empty: [permute, finetune]")
        for name in self.steps:
            if name not in self.options:
                more = "+attack@attack.options.NAME=ATTACK adds one"
                raise ConfigError(f"attack.steps={name}: not in attack.options; {near(name, self.options)}; {more}")
        for name in self.at:
            choice("attack.at", name, self.steps[:-1])
        # Of the options only those that are used count, and no seed: what is left is what a hash covers.
        used = {name: {**self.options[name], "seed": 0} for name in dict.fromkeys(self.steps)}
        object.__setattr__(self, "options", used)
        for name, step in self.attacks.items():
            if step.goal != "removal":
                raise ConfigError(f"attack.steps={name}: its goal is {step.goal}; attack.options.{name}.goal=removal")
            if getattr(step, "transfer", None) is not None:
                raise ConfigError(f"attack.options.{name}.transfer: a chain stays with the victim's data")
        knows = list(dict.fromkeys(item for step in self.attacks.values() for item in step.knows))
        data = "attacker" if any(step.data == "attacker" for step in self.attacks.values()) else "none"
        if strange := [item for item in self.knows if item not in knows]:
            raise ConfigError(
                f"attack.knows={strange[0]}: no step knows it, state it at one: attack.options.NAME.knows"
            )
        if self.data != "none" and data == "none":
            raise ConfigError(f"attack.data={self.data}: no step has data, state it at one: attack.options.NAME.data")
        object.__setattr__(self, "knows", knows)
        object.__setattr__(self, "data", data)
        super().__post_init__()

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """The attacks that are steps, by name."""
        return {name: spec.build(node, f"attack.options.{name}") for name, node in self.options.items()}

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(item for step in self.attacks.values() for item in step.needs))

    @property
    def knobs(self) -> dict[str, Knob]:  # type: ignore[override]
        return {name: knob for step in self.attacks.values() for name, knob in step.knobs.items()}

    @property
    def version(self) -> int:  # type: ignore[override]
        """Rises with each step's."""
        return sum(step.version for step in self.attacks.values())

    def fits(self, task: Task) -> None:
        for step in self.attacks.values():
            step.fits(task)

    def skip(self, victim: Victim) -> str | None:
        """The first step's reason. A later one is asked on the network that it gets, in `run`."""
        why = self.attacks[self.steps[0]].skip(victim)
        return f"{self.steps[0]}: {why}" if why else None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        way, spent = "", 0.0
        for number, name in enumerate(self.steps):
            step = self.attacks[name]
            if number and (why := step.skip(victim)):
                yield Snapshot(f"{way}{name}", None, victim.model, skipped=f"{name}: {why}")
                return
            # The same training twice must not see the same batches twice.
            points = step.run(victim, rng, fit.seeded(spec.derive(fit.seed, "step", number)))
            points = timed(points, victim.model, spent)
            if number == len(self.steps) - 1:
                yield from (replace(point, knob=f"{way}{point.knob}") for point in points)
                return
            found = self._chosen(name, points)
            if found.skipped:
                yield replace(found, knob=f"{way}{name}", skipped=f"{name}: {found.skipped}")
                return
            victim, spent = replace(victim, model=found.model), found.seconds
            way = f"{way}{name} {_called(found)} > "

    def _chosen(self, name: str, points: Iterator[Snapshot]) -> Snapshot:
        """A copy of the point that the next step starts from; a skipped one where there is none."""
        wanted, found, seen = self.at.get(name), None, []
        for point in points:
            seen.append(_called(point))
            if wanted in (None, seen[-1]) and (found is None or found.skipped or not point.skipped):
                found = replace(point, model=copy.deepcopy(point.model).requires_grad_(True))
            if wanted == seen[-1]:
                break
        if found is None and wanted:
            raise ConfigError(f"attack.at.{name}={wanted}: no such point; valid: {', '.join(dict.fromkeys(seen))}")
        return found or Snapshot(name, None, nn.Identity(), skipped="it makes no point")


def timed(points: Iterator[Snapshot], model: nn.Module, before: float) -> Iterator[Snapshot]:
    """Points with their seconds, of which `before` were spent on the network `model` that they are made from."""
    device, spent = machine.device_of(model), before
    while True:
        machine.settle(device)
        started = time.perf_counter()
        point = next(points, None)
        machine.settle(device)
        took = time.perf_counter() - started
        if point is None:
            return
        if not point.skipped:
            spent = took + (spent if point.continues else before)
        yield replace(point, seconds=spent)


def _called(point: Snapshot) -> str:
    """A point as tables name it: `ratio 0.5`."""
    return point.knob if point.strength is None else f"{point.knob} {point.strength:g}"
