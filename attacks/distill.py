"""Distillation: a fresh student learns the victim's outputs on the attacker's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from attacks._students import StudentAttack
from bench import spec
from bench.errors import within
from bench.metrics import Knob
from bench.types import Fit, Snapshot, Task, Victim


@dataclass(frozen=True)
class Distill(StudentAttack):
    """The student's cross-entropy is with the victim's outputs, both divided by `temperature`, times its square, so
    that gradients keep their size (Hinton et al. 2015, Sec. 2). alpha: weight of that loss; 1 - alpha is the weight of
    the one on the attacker's labels, which are not read at alpha 1.
    """

    knobs: ClassVar[dict[str, Knob]] = {"epoch": Knob("Epochs of distillation", None)}
    needs = ("outputs",)

    temperature: float = spec.later(1.0, check=within(0, ends="(]"))
    alpha: float = spec.later(1.0, check=within(0, 1))

    def fits(self, task: Task) -> None:
        if self.temperature != 1 and task.gives not in ("classes", "maps", "text"):
            raise task.refuses("its networks give no logits to divide: attack.temperature=1")

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        task, seed = victim.task, int(rng.integers(2**62))

        def loss(model: Any, batch: Any) -> Tensor:
            if self.temperature == 1:
                soft = task.distill(model, victim.model, batch)
            else:
                student, teacher = (cooled(net, self.temperature) for net in (model, victim.model))
                soft = task.distill(student, teacher, batch) * self.temperature**2
            return soft if self.alpha == 1 else self.alpha * soft + (1 - self.alpha) * task.loss(model, batch)

        yield from self.learned(victim, seed, fit, loss)


def cooled(model: Callable[[Any], Tensor], temperature: float) -> Callable[[Any], Tensor]:
    """A network's outputs, divided."""
    return lambda images: model(images) / temperature
