"""Fine-tuning in the four modes of the SoK of Lukas et al. (S&P 2022, Sec. IV), a snapshot per epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.errors import ConfigError, among, within
from bench.types import Fit, Snapshot, TunedAttack, Victim


@dataclass(frozen=True)
class Finetune(TunedAttack):
    """Train on the attacker's data.

    mode: `ftal` all layers, `ftll` the last layer only, `rtal` and `rtll` the same with the last layer
    re-initialised first. transfer: a conf/data node to train on instead, with a new head for its classes
    (NeuralMark's setting): utility is then that data set's and damage is undefined.
    """

    needs_data = True

    mode: str = among("ftal", "ftll", "rtal", "rtll")
    epochs: int = within(1)
    transfer: Any

    def skip(self, victim: Victim) -> str | None:
        try:
            if self.mode != "ftal" and victim.task.head(victim.model) is None:
                raise victim.task.refuses("the network has no classifier to train alone or exchange: attack.mode=ftal")
        except ConfigError as error:
            return str(error)
        return None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model, task, seed = copy.deepcopy(victim.model), victim.task, int(rng.integers(2**62))
        if victim.other is not None:
            task = victim.other
            model = task.adopt(model, victim.task, seed)
        elif self.mode.startswith("rt"):
            model = task.adopt(model, task, seed)
        only = [task.head(model)] if self.mode.endswith("ll") else None
        for epoch in fit.epochs(model, task, only=only, **self.schedule(self.epochs)):
            yield Snapshot("epoch", epoch, model, moved=victim.other is not None, continues=epoch > 1)
