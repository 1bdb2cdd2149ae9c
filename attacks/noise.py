"""Additive Gaussian noise on the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bench.errors import ConfigError, among, within
from bench.metrics import Knob
from bench.models.weights import like, weights
from bench.types import Attack, Fit, Snapshot, Victim


@dataclass(frozen=True)
class Noise(Attack):
    """Convolution and linear weights plus sigma times their layer's standard deviation times N(0, 1).

    scope: `all` layers, or the `marked` one only, which must then be in `knows`. All strengths share one draw, so that
    they differ in size alone.
    """

    knobs: ClassVar[dict[str, Knob]] = {"sigma": Knob("Noise (layer σ)", log=True)}
    sigmas: list[float] = within(0.0, 1e6)
    scope: str = among("all", "marked")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "marked" and not {"layer", "key"} & set(self.knows):
            raise ConfigError("attack.scope=marked needs to know the layer: attack.knows=[weights,layer]")

    def skip(self, victim: Victim) -> str | None:
        return "no marked layer to disturb" if self.scope == "marked" and not victim.where else None

    @torch.no_grad()
    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model = copy.deepcopy(victim.model)
        names = list(victim.where) if self.scope == "marked" else list(weights(model))
        original = {name: model.get_parameter(name).detach().clone() for name in names}
        noise = {name: like(w, rng) * w.std() for name, w in original.items()}
        for sigma in self.sigmas:
            for name, weight in original.items():
                model.get_parameter(name).copy_(weight + sigma * noise[name])
            yield Snapshot("sigma", sigma, model)
