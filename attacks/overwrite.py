"""Overwriting: the attacker embeds a mark of its own with the same method, starting from the victim."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from bench.errors import among, within
from bench.types import Attack, Fit, Key, Snapshot, Victim


@dataclass(frozen=True)
class Overwrite(Attack):
    """A grid of embedding strengths and learning rates, as in NeuralMark's Sec. 5.

    First without any training, which is all that a method of substitution needs. Then factors: multiples of the
    method's own lambda_; lrs: learning rates; epochs on the attacker's data each. One attacker's draws serve the whole
    grid, so that its points differ in strength alone.
    """

    needs = ("weights", "method", "layer")
    needs_data = True

    factors: list[float] = within(0.0, 1e6)
    lrs: list[float] = within(1e-9, 1e3)
    optimizer: str = among("sgd", "adamw")
    epochs: int = within(1)

    def skip(self, victim: Victim) -> str | None:
        if victim.method.access == "outputs":
            return "the method trains its mark by a schedule of its own, which no grid of rates and factors varies"
        return None if victim.method.marks else "the method embeds nothing that could be overwritten"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        start = copy.deepcopy(rng)
        model, key = self._embedded(victim, start, fit.using(epochs=0), 1.0)
        yield Snapshot("no training", None, model, claim=key)
        tunable = victim.method.tunable
        for lr in self.lrs:
            faster = fit.using(optimizer=self.optimizer, lr=lr, epochs=self.epochs, schedule="constant", warmup=0.0)
            for factor in self.factors if tunable else [1.0]:
                model, key = self._embedded(victim, start, faster, factor)
                if tunable:
                    yield Snapshot(f"lambda factor, lr {lr:g}", factor, model, claim=key)
                else:
                    yield Snapshot("lr", lr, model, claim=key)

    def _embedded(self, victim: Victim, start: np.random.Generator, fit: Fit, factor: float) -> tuple[nn.Module, Key]:
        method = victim.method.again(factor)
        # The same draws each time; where the strength is part of the key (frequency), it differs in that alone.
        key = method.keygen(victim.model, copy.deepcopy(start))
        return method.embed(copy.deepcopy(victim.model), key, victim.task, fit), key
