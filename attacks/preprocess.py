"""What a service does to each query before its network sees it: the input-side attacks of the SoK.

Lukas, Jiang, Li, Kerschbaum: SoK: How Robust is Image Classification Deep Neural Network Watermarking? (S&P 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.data import changes
from bench.errors import within
from bench.types import Attack, Fit, Snapshot, Victim

KINDS = ("jpeg", "noise", "flip", "blur", "median", "depth", "resize")


@dataclass(frozen=True)
class Preprocess(Attack):
    """The stolen network with its weights as they are, behind one of bench.data.changes, at each strength.

    JPEG's quality; Gaussian noise (standard deviation, of 255), which a picture always gets the same; a flip from left
    to right; blur (standard deviation, pixels) and median (window) smoothing; bits a channel keeps (input quantisation
    and feature squeezing); a factor of each side, and back. Pictures are 8 bit before and after. Not of the SoK's list:
    reconstruction by an autoencoder, which would need data. A mark that is read from weights is not touched, and its
    rows say what the change costs alone.
    """

    jpeg: list[float] = within(0, 255, empty=True)
    noise: list[float] = within(0, 255, empty=True)
    flip: list[float] = within(0, 255, empty=True)
    blur: list[float] = within(0, 255, empty=True)
    median: list[float] = within(0, 255, empty=True)
    depth: list[float] = within(0, 255, empty=True)
    resize: list[float] = within(0, 255, empty=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in KINDS:
            for strength in getattr(self, kind):
                changes.check(f"attack.{kind}", kind, strength)

    def skip(self, victim: Victim) -> str | None:
        return "its changes are of pictures: a text has none" if victim.task.gives == "text" else None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        seed = int(rng.integers(2**62))
        for kind in KINDS:
            for strength in getattr(self, kind):
                mirrored = kind == "flip" and victim.task.gives in ("pictures", "maps")
                why = "what is given would be of another picture" if mirrored else ""
                model = behind(victim.model, Filter(kind, strength, seed))
                yield Snapshot(kind, strength, model, skipped=why)


@dataclass(frozen=True)
class Filter:
    """A forward pre-hook: the first argument, pictures in 0..255, is changed. A class, so that copies can be made."""

    kind: str
    strength: float
    seed: int

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (changes.processed(args[0].float(), self.kind, self.strength, self.seed), *args[1:])


def behind(model: nn.Module, change: Filter) -> nn.Module:
    """A copy of a network that sees what `change` makes of its inputs: a hook before all others, no weight renamed."""
    found = copy.deepcopy(model)
    found.register_forward_pre_hook(change, prepend=True)
    return found
