"""What is done to a service's pictures before anybody looks: JPEG, noise, blur, resizing, a shift, brightness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bench import outputs
from bench.pictures import seen
from bench.train import Fit
from bench.types import Attack, Snapshot, Victim


@dataclass(frozen=True)
class Postprocess(Attack):
    """Each kind of bench.outputs at its strengths, which are JPEG's quality, standard deviations of noise (of 255) and
    blur (pixels), a factor of each side, pixels, and grey levels added. No training, no data."""

    needs = ("outputs",)

    jpeg: list[float]
    noise: list[float]
    blur: list[float]
    resize: list[float]
    shift: list[float]
    brightness: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in outputs.KINDS:
            for strength in getattr(self, kind):
                outputs.check(f"attack.{kind}", kind, strength)

    def skip(self, victim: Victim) -> str | None:
        return untouchable(victim)

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        seed = int(rng.integers(2**62))
        for kind in outputs.KINDS:
            for strength in getattr(self, kind):
                change = partial(outputs.processed, kind=kind, strength=strength, seed=seed)
                yield Snapshot(kind, strength, Changed(victim.model, change))


def untouchable(victim: Victim) -> str | None:
    """Why there is nothing to gain from a victim's outputs, or None."""
    if victim.method.marks and victim.method.access == "weights":
        return "the mark is read from weights, which no change of outputs touches"
    return None if victim.task.gives == "pictures" else "the victim gives no pictures"


class Changed(nn.Module):
    """A network whose 8-bit outputs [B, 3, H, W] are changed by a function."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.change, self.input_mean = model, change, model.input_mean

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.change(seen(self.model(images)))
