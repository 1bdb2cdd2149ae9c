"""Mean-filling: every tap of a kernel becomes the kernel's mean (against marks in non-DC frequency components)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from bench.errors import within
from bench.metrics import Knob
from bench.models import branches
from bench.types import Attack, Fit, Snapshot, Victim


@dataclass(frozen=True)
class Meanfill(Attack):
    """Replace a fraction of the kernels, drawn at random, by their tap mean.

    Who knows the method aims at the module that it added, where there is one: on constant input that changes nothing.
    Elsewhere all convolutions with more than one tap are filled, which is what it then costs.
    """

    knobs: ClassVar[dict[str, Knob]] = {"fraction": Knob("Share of kernels filled")}
    needs = ("weights", "method")

    fractions: list[float] = within(0.0, 1.0)

    def skip(self, victim: Victim) -> str | None:
        return None if spatial(victim.model) else "the network has no convolution with more than one tap"

    @torch.no_grad()
    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model = copy.deepcopy(victim.model)
        weights = [module.weight for module in spatial(branches.branch(model) or model)]
        original = [w.detach().clone() for w in weights]
        # One draw for all strengths: the sets of rising fractions are nested.
        draws = [torch.from_numpy(rng.random(tuple(w.shape[:2]))).to(w.device) for w in weights]
        for fraction in self.fractions:
            for weight, was, draw in zip(weights, original, draws, strict=True):
                filled = was.mean((2, 3), keepdim=True).expand_as(was)
                weight.copy_(torch.where((draw < fraction)[:, :, None, None], filled, was))
            yield Snapshot("fraction", fraction, model)


def spatial(model: nn.Module) -> list[nn.Conv2d]:
    """The convolutions with more than one tap."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight[0, 0].numel() > 1]
