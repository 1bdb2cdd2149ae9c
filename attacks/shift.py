"""Weight shifting (Lukas et al., SoK, S&P 2022): filters moved against their layer's mean, then fine-tuned."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bench.errors import within
from bench.metrics import Knob
from bench.models.weights import like, weights
from bench.types import Fit, Snapshot, TunedAttack, Victim


@dataclass(frozen=True)
class Shift(TunedAttack):
    """W - strength x (mean filter of the layer) - noise x std x N(0, 1), then `epochs` of fine-tuning.

    As in the authors' code, for every convolution (and, ours, linear weight: transformers have few convolutions); its
    values there are strength 1.5 and noise 1, which is most of what the weights hold.
    """

    knobs: ClassVar[dict[str, Knob]] = {"strength": Knob("Shift (mean filters)")}
    needs_data = True

    strengths: list[float] = within(0.0, 1e6)
    noise: float = within(0)
    epochs: int = within(0)

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        noise = {name: like(w, rng) for name, w in weights(victim.model).items()}
        for strength in self.strengths:
            model = copy.deepcopy(victim.model)
            with torch.no_grad():
                for name, w in weights(model).items():
                    w -= strength * w.mean(0, keepdim=True) + self.noise * w.std() * noise[name]
            yield Snapshot("strength", strength, fit(model, victim.task, **self.schedule(self.epochs)))
