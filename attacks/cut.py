"""Cutting out the module that a method added to the network, and fine-tuning what is left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench import branches, spec
from bench.train import Fit, check_tuning, tuning
from bench.types import Attack, Snapshot, Victim


@dataclass(frozen=True)
class Cut(Attack):
    """Remove the module (epoch 0), then train all that is left on the attacker's data, a snapshot per epoch."""

    needs = ("weights", "method")
    needs_data = True

    optimizer: str
    lr: float
    weight_decay: float
    epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tuning(self)
        spec.at_least("attack.epochs", self.epochs, 0)

    def skip(self, victim: Victim) -> str | None:
        return None if branches.branch(victim.model) else "the method adds no module that could be cut out"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model = branches.detach(copy.deepcopy(victim.model))
        yield Snapshot("epoch", 0, model)
        for epoch in fit.epochs(model, victim.task, **tuning(self, self.epochs)):
            yield Snapshot("epoch", epoch, model, continues=True)
