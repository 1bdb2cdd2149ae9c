"""Permutation and rescaling of channels: other weights, the same function (attacks/_disguise.py has the rules)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attacks._disguise import disguise, noise
from bench.errors import within
from bench.metrics import Knob
from bench.types import Attack, Fit, Snapshot, Victim


@dataclass(frozen=True)
class Permute(Attack):
    """Every interchangeable set of channels in a random order; outputs equal to float error, so damage is 0.

    scales: 1 permutes only; with s > 1 each channel is also scaled by a factor, log-uniform in [1/s, s], wherever
    that preserves the function exactly. What changes the logits by more than 1e-4 of the largest is undone.
    """

    knobs: ClassVar[dict[str, Knob]] = {"scale": Knob("Largest factor of a channel", None, log=True)}
    scales: list[float] = within(1.0, 1e3)

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        images = noise(victim.task, rng)
        for scale in self.scales:
            model = copy.deepcopy(victim.model)
            done, undone = disguise(model, images, scale, rng)
            why = "" if done else f"no channels of this network could be exchanged ({len(undone)} sets tried)"
            yield Snapshot("scale", scale, model, skipped=why)
