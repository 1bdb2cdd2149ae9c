"""The cheapest removal of a mark that is the same in all pictures: subtract what their errors have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attacks._outputs import Changed, OutputAttack
from bench import spec
from bench.data.pixels import seen
from bench.errors import within
from bench.metrics import Knob
from bench.types import Fit, Snapshot, Victim

BATCH = 64


@dataclass(frozen=True)
class Residual(OutputAttack):
    """An estimate of the mark's trace, [3, H, W], taken from every output.

    pairs: the mean of output less clean picture, over so many pairs of the attacker's. highpass: the mean of what a
    blur of 2 pixels takes from so many outputs; no clean picture is looked at.
    """

    knobs: ClassVar[dict[str, Knob]] = {
        "pairs": Knob("Pairs averaged", None, log=True),
        "highpass": Knob("Pictures averaged", None, log=True),
    }
    needs_data = True

    pairs: list[int] = within(1, 10**9, empty=True)
    highpass: list[int] = within(1, 10**9, empty=True)

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        seed = int(rng.integers(2**62))
        for knob, counts in (("pairs", self.pairs), ("highpass", self.highpass)):
            for count in counts:
                trace = self._trace(victim, knob, count, seed)
                yield Snapshot(knob, count, Changed(victim.model, lambda x, trace=trace: x - trace))

    def _trace(self, victim: Victim, knob: str, count: int, seed: int) -> Tensor:
        """Mean over `count` outputs, drawn epoch after epoch where the attacker has fewer."""
        total, left, epoch = 0.0, count, 0
        while left:
            epoch += 1
            for images, clean in victim.task.batches(victim.task.train, BATCH, spec.derive(seed, epoch)):
                images, clean = images[:left], clean[:left].float()
                with torch.inference_mode():
                    given = seen(victim.model(images))
                total = total + (given - (clean if knob == "pairs" else smooth(given))).sum(0)
                left -= len(images)
                if not left:
                    break
        return total / count


def smooth(pictures: Tensor) -> Tensor:
    """Blurred by a Gaussian of 2 pixels."""
    from torchvision.transforms.functional import gaussian_blur

    return gaussian_blur(pictures, [13, 13], [2.0, 2.0])
