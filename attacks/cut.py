"""Cutting out the module that a method added to the network, and fine-tuning what is left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.errors import within
from bench.metrics import Knob
from bench.models import branches
from bench.types import Fit, Snapshot, TunedAttack, Victim


@dataclass(frozen=True)
class Cut(TunedAttack):
    """Remove the module (epoch 0), then train all that is left on the attacker's data, a snapshot per epoch."""

    knobs: ClassVar[dict[str, Knob]] = {"epoch": Knob("Epochs after the cut", None)}
    needs = ("weights", "method")
    needs_data = True

    epochs: int = within(0)

    def skip(self, victim: Victim) -> str | None:
        return None if branches.branch(victim.model) else "the method adds no module that could be cut out"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model = branches.detach(copy.deepcopy(victim.model))
        yield Snapshot("epoch", 0, model)
        for epoch in fit.epochs(model, victim.task, **self.schedule(self.epochs)):
            yield Snapshot("epoch", epoch, model, continues=True)
