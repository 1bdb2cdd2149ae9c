"""What is done to a service's pictures before anybody looks: JPEG, noise, blur, resizing, a shift, brightness."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from attacks._outputs import Changed, OutputAttack
from bench.data import changes
from bench.errors import within
from bench.types import Fit, Snapshot, Victim

KINDS = ("jpeg", "noise", "blur", "resize", "shift", "brightness")


@dataclass(frozen=True)
class Postprocess(OutputAttack):
    """Each kind of bench.data.changes at its strengths: JPEG's quality, standard deviations of noise (of 255) and blur
    (pixels), a factor of each side, pixels, and grey levels added. No training, no data."""

    jpeg: list[float] = within(-255, 255, empty=True)
    noise: list[float] = within(-255, 255, empty=True)
    blur: list[float] = within(-255, 255, empty=True)
    resize: list[float] = within(-255, 255, empty=True)
    shift: list[float] = within(-255, 255, empty=True)
    brightness: list[float] = within(-255, 255, empty=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in KINDS:
            for strength in getattr(self, kind):
                changes.check(f"attack.{kind}", kind, strength)

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        seed = int(rng.integers(2**62))
        for kind in KINDS:
            for strength in getattr(self, kind):
                change = partial(changes.processed, kind=kind, strength=strength, seed=seed)
                yield Snapshot(kind, strength, Changed(victim.model, change))
