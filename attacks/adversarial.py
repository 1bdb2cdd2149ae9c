"""Adversarial training on the attacker's data (SoK of Lukas et al., S&P 2022; PGD of Madry et al., ICLR 2018)."""

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

RANGE = 255.0  # of a pixel


@dataclass(frozen=True)
class Adversarial(TunedAttack):
    """For each of `eps`, a fraction of the pixel range, `epochs` on inputs changed by at most so much against the
    network that trains: `iterations` steps of `step` (of the range) up the sign of the loss's gradient, from a random
    start."""

    knobs: ClassVar[dict[str, Knob]] = {"eps": Knob("Largest change of a pixel")}
    needs_data = True

    eps: list[float] = within(0.0, 1.0)
    step: float = within(0, ends="(]")
    iterations: int = within(1)
    epochs: int = within(1)

    def __post_init__(self) -> None:
        super().__post_init__()

    def skip(self, victim: Victim) -> str | None:
        if victim.task.gives in ("classes", "maps"):
            return None
        return "the victim names no class that an input could be moved from"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        for eps in self.eps:
            model = copy.deepcopy(victim.model)

            def loss(model: nn.Module, batch: Any, eps: float = eps) -> Tensor:
                moved = attacked(model, victim.task, batch, eps, self.step, self.iterations)
                return victim.task.loss(model, (moved, *batch[1:]))

            yield Snapshot("eps", eps, fit(model, victim.task, loss=loss, **self.schedule(self.epochs)))


def attacked(model: nn.Module, task: Task, batch: Any, eps: float, step: float, iterations: int) -> Tensor:
    """Images float [B, 3, H, W] in 0..255, at most eps * 255 from the batch's in each pixel, that raise the loss.

    The network is in evaluation mode meanwhile, so that its statistics see only what it trains on.
    """
    images, *rest = batch
    images, radius = images.float(), eps * RANGE
    low, high = (images - radius).clamp(min=0), (images + radius).clamp(max=RANGE)
    moved = (images + radius * (2 * torch.rand_like(images) - 1)).clamp(low, high)
    training = [module for module in model.modules() if module.training]
    model.eval()
    for _ in range(iterations):
        moved.requires_grad_(True)
        (slope,) = torch.autograd.grad(task.loss(model, (moved, *rest)), moved)
        moved = (moved.detach() + step * RANGE * slope.sign()).clamp(low, high)
    for module in training:
        module.training = True
    return moved.detach()
