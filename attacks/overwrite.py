"""Overwriting: the attacker embeds marks of its own with the same method, starting from the victim."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from attacks._rewrite import rewrite
from bench import metrics, spec
from bench.errors import ConfigError, among, within
from bench.metrics import Knob
from bench.types import Attack, Fit, Key, Method, Snapshot, Task, Victim


@dataclass(frozen=True)
class Overwrite(Attack):
    """Either a grid of trainings or, without data and training, the least change of the weights.

    mode `train` (a grid of strengths and learning rates, as in NeuralMark's Sec. 5): first without any training, which
    is all that a method of substitution needs. Then factors: multiples of the method's own lambda_; lrs: learning
    rates; epochs on the attacker's data each. One attacker's draws serve the whole grid, so that its points differ in
    strength alone. A method that does not train has no rates: a point for each factor. transfer: a conf/data node to
    train on instead, with a new head for its classes (the paper's own setting, CIFAR-10 <-> CIFAR-100): utility is then
    that data set's and damage is undefined. The point without training stays with the victim's data and head: there is
    nothing to train a new one.
    mode `closed_form` (ours): honest keys, written one after another, each by the least change of the weights, in the
    Euclidean norm, after which it reads its message with `margin` times the median margin of what it read before (1: as
    an honest mark; little is read as well, and costs less); keys that this made misread are written again, as long as
    their wrong bits become fewer. A point for each count in `keys`; its claim is the key that then reads worst: where
    that one passes, all do.
    """

    knobs: ClassVar[dict[str, Knob]] = {
        "keys": Knob("Keys written", log=True),
        "factor": Knob("Factor on the step", None, log=True),
        "lambda factor": Knob("Factor on λ", log=True),
        "lr": Knob("Learning rate", log=True),
    }
    needs = ("weights", "method", "layer")

    factors: list[float] = within(0.0, 1e6)
    lrs: list[float] = within(1e-9, 1e3)
    optimizer: str = among("sgd", "adamw")
    epochs: int = within(1)
    mode: str = spec.later("train", check=among("train", "closed_form"))
    keys: list[int] = spec.later([1, 5, 20], check=within(1, 10_000))
    transfer: Any = spec.later(None)
    margin: float = spec.later(1.0, check=within(0, 1e6, ends="(]"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "closed_form" and self.transfer is not None:
            raise ConfigError("attack.mode=closed_form trains on no data: attack.transfer=null, or attack.mode=train")
        if self.mode == "train" and self.data == "none":
            raise ConfigError("this attack trains: it needs attack.data=attacker (or attack.mode=closed_form)")

    def skip(self, victim: Victim) -> str | None:
        if victim.method.access == "outputs" and victim.task.gives == "pictures":
            return "the method trains its mark by a schedule of its own, which no grid of rates and factors varies"
        return None if victim.method.marks else "the method embeds nothing that could be overwritten"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        return self._written(victim, rng) if self.mode == "closed_form" else self._trained(victim, rng, fit)

    def _written(self, victim: Victim, rng: np.random.Generator) -> Iterator[Snapshot]:
        model, method, made = copy.deepcopy(victim.model), victim.method, []

        def wrong(key: Key) -> float:
            return metrics.ber(method.extract(model, key, victim.task), key.message)

        def write(key: Key) -> None:
            rewrite(model, method, key, key.message.cpu().numpy(), margin=self.margin)

        for count in range(1, max(self.keys) + 1):
            key = method.keygen(victim.model, rng, victim.task)
            if count == 1 and method.logits(model, key) is None:
                yield Snapshot("keys", None, model, skipped="extraction is not differentiable: nothing to solve")
                return
            made.append(key)
            write(key)
            left, before = sum(map(wrong, made)), float("inf")
            while 0 < left < before:
                for key in filter(wrong, made):
                    write(key)
                left, before = sum(map(wrong, made)), left
            if count in self.keys:
                yield Snapshot("keys", count, model, claim=max(made, key=wrong), continues=count > min(self.keys))

    def _trained(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        start = copy.deepcopy(rng)
        model, key = self._embedded(victim.model, victim.task, victim.method.again(1.0), start, fit.using(epochs=0))
        yield Snapshot("no training", None, model, claim=key)
        method, tunable = victim.method.again(1.0), victim.method.tunable
        if not method.from_scratch and not method.trains_on and method.access == "weights":
            for factor in self.factors if tunable else []:
                model, key = self._embedded(victim.model, victim.task, victim.method.again(factor), start, fit)
                yield Snapshot("factor", factor, model, claim=key)
            return
        model, task, moved = victim.model, victim.task, victim.other is not None
        if moved:  # one new head, too, serves the whole grid
            task = victim.other
            model = task.adopt(copy.deepcopy(model), victim.task, spec.derive(fit.seed, "head"))
        for lr in self.lrs:
            faster = fit.using(optimizer=self.optimizer, lr=lr, epochs=self.epochs, schedule="constant", warmup=0.0)
            for factor in self.factors if tunable else [1.0]:
                made, key = self._embedded(model, task, victim.method.again(factor), start, faster)
                knob, strength = (f"lambda factor, lr {lr:g}", factor) if tunable else ("lr", lr)
                yield Snapshot(knob, strength, made, claim=key, moved=moved)

    @staticmethod
    def _embedded(
        model: nn.Module, task: Task, method: Method, start: np.random.Generator, fit: Fit
    ) -> tuple[nn.Module, Key]:
        # The same draws each time; where the strength is part of the key (frequency), it differs in that alone.
        key = method.keygen(model, copy.deepcopy(start), task)
        return method.embed(copy.deepcopy(model), key, task, fit), key
