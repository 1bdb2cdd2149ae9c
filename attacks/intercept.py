"""Interception: the owner's key has leaked, and the attacker alters exactly the weights it points at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attacks._rewrite import rewrite
from bench.errors import ConfigError, within
from bench.metrics import Knob
from bench.models.weights import like, pointed
from bench.types import Fit, Snapshot, TunedAttack, Victim

Change = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Intercept(TunedAttack):
    """Every weight that any bit is read from, and no other, is altered.

    zeroed, negated, redrawn (from N(0, 1) times the layer's standard deviation): a fraction of those weights, nested as
    it rises; sigma: noise of so many standard deviations on all of them; rewritten: the least change of them, in the
    Euclidean norm, after which the key reads a random message with the old margins. Then `epochs` of fine-tuning on the
    attacker's data after redrawing all and after rewriting: does the model recover, and does the mark come back?
    """

    knobs: ClassVar[dict[str, Knob]] = {
        "zeroed": Knob("Share of weights zeroed"),
        "negated": Knob("Share of weights negated"),
        "redrawn": Knob("Share of weights redrawn"),
        "sigma": Knob("Noise (layer σ)", log=True),
    }
    needs = ("weights", "method", "key")

    fractions: list[float] = within(0.0, 1.0)
    sigmas: list[float] = within(0.0, 1e6)
    epochs: int = within(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs and self.data == "none":
            raise ConfigError("attack.epochs of recovery need data: attack.data=attacker (or attack.epochs=0)")

    def skip(self, victim: Victim) -> str | None:
        if victim.key is None:
            return "the method has no key that could leak"
        if victim.method.logits(victim.model, victim.key) is None:
            return "the key points at no weights"
        return None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model = copy.deepcopy(victim.model)
        masks = pointed(model, victim.method, victim.key)
        state = copy.deepcopy(model.state_dict())
        original = {name: model.get_parameter(name).detach().clone() for name in masks}
        share = {name: torch.from_numpy(rng.random(tuple(w.shape))).to(w.device) for name, w in original.items()}
        noise = {name: like(w, rng) * w.std() for name, w in original.items()}
        changes: dict[str, Change] = {
            "zeroed": lambda w, hit, z: torch.where(hit, 0.0, w),
            "negated": lambda w, hit, z: torch.where(hit, -w, w),
            "redrawn": lambda w, hit, z: torch.where(hit, z, w),
        }

        def alter(change: Change, fraction: float) -> None:
            with torch.no_grad():
                for name, mask in masks.items():
                    hit = mask & (share[name] < fraction)
                    model.get_parameter(name).copy_(change(original[name], hit, noise[name]))

        for knob, change in changes.items():
            for fraction in self.fractions:
                alter(change, fraction)
                yield Snapshot(knob, fraction, model)
        for sigma in self.sigmas:
            alter(lambda w, hit, z, sigma=sigma: torch.where(hit, w + sigma * z, w), 1.0)
            yield Snapshot("sigma", sigma, model)
        alter(changes["redrawn"], 1.0)
        yield from self._recovered("redrawn", model, victim, fit)
        model.load_state_dict(state)
        rewrite(model, victim.method, victim.key, rng.integers(0, 2, victim.key.n_bits).astype(bool))
        yield Snapshot("rewritten", None, model)
        yield from self._recovered("rewritten", model, victim, fit)

    def _recovered(self, what: str, model: nn.Module, victim: Victim, fit: Fit) -> Iterator[Snapshot]:
        for epoch in fit.epochs(model, victim.task, **self.schedule(self.epochs)) if self.epochs else ():
            yield Snapshot(f"{what}, epoch", epoch, model, continues=True)
