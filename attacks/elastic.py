"""REFIT: fine-tuning at a large rate that spares what the task needs (Chen et al., AsiaCCS 2021, Sec. 4)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import within
from bench.metrics import Knob
from bench.types import Fit, Snapshot, Task, TunedAttack, Victim


@dataclass(frozen=True)
class Elastic(TunedAttack):
    """For each lambda: loss + lambda / 2 sum F (theta - theta*)^2 for `epochs`, the rate times `decay` after each;
    theta* are the victim's weights, F their Fisher information (`fisher`) on at most `images` of the attacker's.

    lambda F is cut at 1 / lr, where a step leads back to theta*: beyond it the penalty itself would diverge (ours).
    labelled: whether the attacker's images have labels; else they get those that the victim names.
    """

    knobs: ClassVar[dict[str, Knob]] = {"lambda": Knob("Weight of the penalty", None, rises=False, log=True)}
    needs_data = True

    lambdas: list[float] = within(0.0, 1e9)
    epochs: int = within(1)
    decay: float = within(0.01, 1.0)
    images: int = within(1)
    labelled: bool

    def skip(self, victim: Victim) -> str | None:
        return None if victim.task.gives in ("classes", "maps", "text") else "the victim names no class"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        task = victim.task

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return task.loss(model, batch if self.labelled else named(victim.model, task, batch))

        found = fisher(copy.deepcopy(victim.model).requires_grad_(True), task, self.images)
        start = {name: p.detach().clone() for name, p in victim.model.named_parameters()}
        falling = {
            "schedule": "step",
            "gamma": self.decay,
            "milestones": [i / self.epochs for i in range(1, self.epochs)],
        }
        for strength in self.lambdas:
            model = copy.deepcopy(victim.model)
            pull = {name: (strength * f).clamp(max=1 / self.lr) for name, f in found.items()}

            def penalty(model: nn.Module, pull: dict[str, Tensor] = pull) -> Tensor:
                held = model.named_parameters()
                return sum((pull[name] * (p - start[name]).square()).sum() for name, p in held) / 2

            how = {"loss": loss, "penalty": penalty if strength else None, **self.schedule(self.epochs), **falling}
            yield Snapshot("lambda", strength, fit(model, task, **how))


def named(model: nn.Module, task: Task, batch: Any) -> Any:
    """A batch (images, labels, ...) with the classes that a network names in place of its labels."""
    with torch.no_grad():
        labels = model(task.inputs(batch)).argmax(1)
    return (batch[0], labels, *batch[2:])


def fisher(model: nn.Module, task: Task, most: int) -> dict[str, Tensor]:
    """Diagonal Fisher information of each parameter, divided by the largest of all: mean over the first `most` images
    of the squared gradient of the log-probability of the class that the network names."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for number, batch in enumerate(task.batches(task.train, 1)):
        if number == most:
            break
        slopes = torch.autograd.grad(
            task.loss(model, named(model, task, batch)), list(parameters.values()), allow_unused=True
        )
        for sums, slope in zip(total.values(), slopes, strict=True):
            if slope is not None:
                sums += slope.square()
    largest = max(float(sums.max()) for sums in total.values())
    return {name: sums / largest if largest > 0 else sums for name, sums in total.items()}
