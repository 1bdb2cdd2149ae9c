"""Neural structural obfuscation: units that change no output, in a network's every part that takes some.

Yan, Pan, Zhang, Yang: Rethinking White-Box Watermarks on Deep Learning Models under Neural Structural Obfuscation,
USENIX Security 2023: dummy neurons by zeroing, by cliques and by splitting, camouflaged by order and scale.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from attacks._disguise import disguise, noise, unchanged
from attacks._widen import KINDS, widen
from bench.errors import ConfigError, among, within
from bench.metrics import Knob
from bench.models import exchange
from bench.types import Attack, Fit, Snapshot, Victim


@dataclass(frozen=True)
class Obfuscate(Attack):
    """Wider layers, the same function: what reads weights by their place has nothing to read.

    amounts: units added to each family of channels, as a share of those it has (attacks/_widen.py says which families
    there are). kinds: `zero`, `clique`, `split`, in turn; group: units of a clique, and copies of a unit that is
    split. permute: then all channels change places, and with scale > 1 their scale, as in the attack `permute`.
    What changes the logits by more than 1e-4 of the largest is undone.
    """

    knobs: ClassVar[dict[str, Knob]] = {"amount": Knob("Units added, share of a layer")}
    amounts: list[float] = within(0.001, 4.0)
    kinds: list[str] = among(*KINDS)
    group: int = within(2)
    permute: bool
    scale: float = within(1.0, 1e3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"attack.kinds={self.kinds}: needs distinct kinds of {', '.join(KINDS)}, at least one")

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        images = noise(victim.task, rng)
        for amount in self.amounts:
            model = copy.deepcopy(victim.model)
            with torch.no_grad(), exchange.evaluating(model):
                holds = unchanged(model, images)
                grown, kept = widen(model, images[:1], holds, amount, self.kinds, self.group, rng)
                if grown and self.permute:
                    disguise(model, images, self.scale, rng)
                why = "" if holds() else "the logits differ by more than 1e-4 of the largest"
            if not grown:
                why = f"no channels of this network could be widened ({len(kept)} sets tried)"
            yield Snapshot("amount", amount, model, skipped=why)
