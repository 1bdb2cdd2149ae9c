"""Merging: the victim averaged with the public network that it was made from, or with its own fine-tuned copies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import ConfigError, within
from bench.metrics import Knob
from bench.types import Fit, Snapshot, TunedAttack, Victim

NO_HOST = "n/a: the victim was not made from a public network"


@dataclass(frozen=True)
class Merge(TunedAttack):
    """(1 - amount) victim + amount host, where the owner fine-tuned a public host (Wortsman et al., Robust fine-tuning
    of zero-shot models, CVPR 2022); and a soup (Wortsman et al., Model soups, ICML 2022): the mean of copies.

    amounts: the host's part; without a public host these points are skipped. soups: copies, each fine-tuned on the
    attacker's data for `epochs` with other batches, 0 for none. Statistics of normalisation are averaged like
    weights; what the host does not have (a module of the method's) stays the victim's. Whole weights are merged, also
    of transformers: no low-rank deltas.
    """

    knobs: ClassVar[dict[str, Knob]] = {"amount": Knob("The host's part"), "soup": Knob("Copies averaged", None)}
    needs = ("weights", "host")

    amounts: list[float] = within(0.0, 1.0)
    soups: int = within(0)
    epochs: int = within(1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.soups and self.data == "none":
            raise ConfigError("attack.soups needs data to fine-tune on: attack.data=attacker")

    def skip(self, victim: Victim) -> str | None:
        return NO_HOST if victim.host is None and not self.soups else None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model, seeds = copy.deepcopy(victim.model), rng.integers(2**62, size=self.soups).tolist()
        own = copy.deepcopy(model.state_dict())
        public = victim.host().state_dict() if victim.host else None
        for amount in self.amounts:
            if public is not None:
                shared = {name: value for name, value in public.items() if name in own}
                model.load_state_dict(own | merged([own, shared], [1 - amount, amount]))
            yield Snapshot("amount", amount, model, skipped="" if public is not None else NO_HOST)
        if self.soups:
            copies = [self._copy(victim, fit.seeded(seed)).state_dict() for seed in seeds]
            model.load_state_dict(merged(copies, [1 / self.soups] * self.soups))
            yield Snapshot("soup", self.soups, model)

    def _copy(self, victim: Victim, fit: Fit) -> nn.Module:
        return fit(copy.deepcopy(victim.model), victim.task, **self.schedule(self.epochs))


def merged(states: Sequence[dict[str, Tensor]], parts: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean, taken in float64, of the tensors of the last state; counters are the first's. Parts sum to 1."""
    found = {}
    for name, last in states[-1].items():
        first = states[0][name]
        terms = [part * state[name].double() for state, part in zip(states, parts, strict=True) if part]
        found[name] = torch.stack(terms).sum(0).to(first.dtype) if last.is_floating_point() else first.clone()
    return found
