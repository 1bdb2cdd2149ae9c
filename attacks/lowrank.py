"""Low-rank approximation: every weight matrix keeps its largest singular values only."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.errors import ConfigError, within
from bench.metrics import Knob
from bench.models import anatomy
from bench.models.weights import weights
from bench.types import Fit, Snapshot, TunedAttack, Victim


@dataclass(frozen=True)
class Lowrank(TunedAttack):
    """Each convolution and linear weight outside the head, seen as [out, in * kernel], at a share of its full rank.

    shares: the rank is ceil(share * min(out, in * kernel)), the nearest matrix of that rank (Eckart and Young 1936).
    A depthwise convolution is a matrix like the others. finetune_after: epochs of fine-tuning on the attacker's data
    after each share; they train all weights, and the rank is full again: it is the mark that should be gone.
    """

    knobs: ClassVar[dict[str, Knob]] = {"share": Knob("Share of the rank kept", 1.0, rises=False)}
    shares: list[float] = within(0.001, 1.0)
    finetune_after: int = within(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finetune_after and self.data == "none":
            raise ConfigError("attack.finetune_after needs data: attack.data=attacker")

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        names = [name for name in weights(victim.model) if not anatomy.of(victim.model).headed(name)]
        matrices = {name: _matrix(victim.model.get_parameter(name)) for name in names}
        parts = {name: torch.linalg.svd(matrix, full_matrices=False) for name, matrix in matrices.items()}
        for share in self.shares:
            model = copy.deepcopy(victim.model)
            with torch.no_grad():
                for name, (left, values, right) in parts.items():
                    rank = kept(share, len(values))
                    weight = model.get_parameter(name)
                    weight.copy_(((left[:, :rank] * values[:rank]) @ right[:rank]).view(weight.shape))
            if self.finetune_after:
                fit(model, victim.task, **self.schedule(self.finetune_after))
            yield Snapshot("share", share, model)


def kept(share: float, full: int) -> int:
    """Rank that a share of the full one is, rounded up; what floats add to a whole number does not count."""
    return max(1, math.ceil(share * full - 1e-9))


def _matrix(weight: Tensor) -> Tensor:
    """[out, rest], float64."""
    return weight.detach().double().flatten(1)
