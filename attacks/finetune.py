"""Fine-tuning in the modes of the SoK of Lukas et al. (S&P 2022, Sec. IV), a snapshot per epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from bench import metrics, spec
from bench.errors import ConfigError, among, within
from bench.metrics import Knob
from bench.models.heads import same
from bench.types import Fit, Snapshot, Task, TunedAttack, Victim


@dataclass(frozen=True)
class Finetune(TunedAttack):
    """Train on the attacker's data.

    mode: `ftal` all layers, `ftll` the last layer only, `rtal` and `rtll` the same with the last layer
    re-initialised first; `smooth` all layers on labels smoothed by `smoothing`; `regularise` all layers, the first
    `decay_epochs` with decay / 2 times the sum of squared weights in the loss (in the loss, for AdamW's own decay is
    scaled by its small rate), then without, until utility on the validation split, which owner and attacker share, has
    not risen for `patience` epochs. transfer: a conf/data node to train on instead, with a new head for its classes
    (NeuralMark's setting): utility is then that data set's and damage is undefined.
    """

    knobs: ClassVar[dict[str, Knob]] = {"epoch": Knob("Epochs of fine-tuning")}
    needs_data = True

    mode: str = among("ftal", "ftll", "rtal", "rtll", "smooth", "regularise")
    epochs: int = within(1)
    transfer: Any
    smoothing: float = spec.later(0.3, check=within(0, 1, ends="()"))
    decay: float = spec.later(0.1, check=within(0))
    decay_epochs: int = spec.later(5, check=within(0))
    patience: int = spec.later(5, check=within(1))

    def fits(self, task: Task) -> None:
        if self.mode == "smooth":
            task.smoothed(self.smoothing)
        if self.mode == "regularise" and not task.size("validation"):
            raise ConfigError("attack.mode=regularise stops on the validation split: raise data.validation")

    def skip(self, victim: Victim) -> str | None:
        alone = self.mode in ("ftll", "rtal", "rtll")
        try:
            if alone and victim.task.head(victim.model) is None:
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
        for epoch in self._epochs(model, task, fit):
            yield Snapshot("epoch", epoch, model, moved=victim.other is not None, continues=epoch > 1)

    def _epochs(self, model: nn.Module, task: Task, fit: Fit) -> Iterator[int]:
        """Train in place; yields after every epoch, from 1."""
        if self.mode == "regularise":
            yield from self._regularised(model, task, fit)
            return
        task = task.smoothed(self.smoothing) if self.mode == "smooth" else task
        only = same(model, task.head(model)) if self.mode.endswith("ll") else None
        yield from fit.epochs(model, task, only=only, **self.schedule(self.epochs))

    def _regularised(self, model: nn.Module, task: Task, fit: Fit) -> Iterator[int]:
        first = min(self.decay_epochs, self.epochs)

        def penalty(model: nn.Module) -> Tensor:
            return self.decay / 2 * sum(p.square().sum() for p in model.parameters())

        yield from fit.epochs(model, task, penalty=penalty, **self.schedule(first))
        best, since = task.utility(model, "validation"), 0
        # Batches of their own: the first phase's would come again.
        loop = fit.seeded(spec.derive(fit.seed, "after"))
        for epoch in loop.epochs(model, task, **self.schedule(self.epochs - first)):
            yield first + epoch
            reached = task.utility(model, "validation")
            risen = metrics.lost(best, reached, task.utility_name) < 0
            best, since = (reached, 0) if risen else (best, since + 1)
            if since == self.patience:
                return
