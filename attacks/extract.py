"""Model extraction by label: a fresh student learns the class that the victim names for the attacker's images, and
nothing else of its outputs (retraining of the SoK of Lukas et al., S&P 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks._students import StudentAttack
from bench.metrics import Knob
from bench.types import Fit, Snapshot, Victim


@dataclass(frozen=True)
class Extract(StudentAttack):
    """The attacker's own labels are never read. A service of labels answers with classes, int64 [B], or one a pixel; of
    one that answers with more, a network say, only the largest output counts."""

    knobs: ClassVar[dict[str, Knob]] = {"epoch": Knob("Epochs of extraction", None)}
    needs = ("labels",)

    def skip(self, victim: Victim) -> str | None:
        return None if victim.task.gives in ("classes", "maps", "text") else "the victim names no class"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            images = victim.task.inputs(batch)
            with torch.no_grad():
                answer = victim.model(images)
            return functional.cross_entropy(model(images), answer.argmax(1) if answer.is_floating_point() else answer)

        yield from self.learned(victim, int(rng.integers(2**62)), fit, loss)
