"""Scrubbing: the attacker looks for the marked layer, and takes from it what a mark can be in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks._layers import conspicuous, layers, short
from bench.errors import among, within
from bench.models.weights import like, weights
from bench.types import Fit, Snapshot, TunedAttack, Victim


@dataclass(frozen=True)
class Scrub(TunedAttack):
    """Neither layer nor key are known: the layer taken is the one that stands out, and is named in the knob.

    find: what it is sought by, `ratio` (its mean filter is larger than independent filters would have it) or `spread`
    (its standard deviation is unlike that of its siblings); in a module that the method added, among its weights alone.
    `mean filter`: W - mean over out + N(0, std(W) / sqrt(out)), in that layer and in all: no data, no training.
    `repeated`: weights whose magnitude is there more often than chance has it (attacks._layers.Layer.bound), drawn
    anew from N(0, std(W)) or negated. `reset`: the whole layer drawn from N(0, std(W)). Both of these then learn the
    victim's own outputs on the attacker's images, without labels, for each count of epochs in `snapshots`, by the run's
    schedule (train.schedule) to its end. All of this is ours.
    """

    needs = ("weights", "method")
    needs_data = True

    find: list[str] = among("ratio", "spread")
    snapshots: list[int] = within(1, 10**6)

    def skip(self, victim: Victim) -> str | None:
        if not victim.method.marks:
            return "nothing is marked that could be scrubbed"
        return "the mark is read from outputs: no layer carries it" if victim.method.access == "outputs" else None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        found = layers(victim.model)
        taken = [*dict.fromkeys(name for by in self.find if (name := conspicuous(found, by)[0]))]
        noise = {name: like(w, rng) for name, w in weights(victim.model).items()}

        def changed(names: list[str], change: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
            model = copy.deepcopy(victim.model)
            with torch.no_grad():
                for name in names:
                    weight = weights(model)[name]
                    weight.copy_(change(weight, noise[name]))
            return model

        for name in taken:
            yield Snapshot(f"mean filter/{short(name)}", None, changed([name], unfiltered))
        yield Snapshot("mean filter/all", None, changed([*noise], unfiltered))

        masks = {name: layer.repeated for name, layer in found.items() if bool(layer.repeated.any())}
        for how in ("redrawn", "negated"):
            if not masks:
                yield Snapshot(f"repeated, {how}", None, victim.model, skipped="no magnitude repeats beyond chance")
                continue
            where = short(*masks) if len(masks) == 1 else f"{len(masks)} layers"
            model = copy.deepcopy(victim.model)
            with torch.no_grad():
                for name, mask in masks.items():
                    weight = weights(model)[name]
                    weight.copy_(torch.where(mask, noise[name] * weight.std() if how == "redrawn" else -weight, weight))
            yield from self._distilled(f"repeated, {how}/{where}", model, victim, fit)
        for name in taken:
            model = changed([name], lambda weight, z: z * weight.std())
            yield from self._distilled(f"reset/{short(name)}", model, victim, fit)

    def _distilled(self, knob: str, model: nn.Module, victim: Victim, fit: Fit) -> Iterator[Snapshot]:
        """The model as it is (strength 0), then after so many epochs of the victim's own outputs, each time anew."""
        task = victim.task
        yield Snapshot(knob, 0, model)

        def loss(student: nn.Module, batch: Any) -> Tensor:
            return task.distill(student, victim.model, batch)

        for epochs in self.snapshots:
            student = copy.deepcopy(model)
            yield Snapshot(knob, epochs, fit(student, task, loss=loss, epochs=epochs, **self.tuning))


def unfiltered(weight: Tensor, noise: Tensor) -> Tensor:
    """A weight [out, ...] whose mean over `out` is what that of independent filters would be; noise: N(0, 1), as it."""
    # The mean of `out` filters of noise is N(0, 1 / out): one draw for the filters' mean alone.
    return weight - weight.mean(0, keepdim=True) + weight.std() / math.sqrt(len(weight)) * noise[:1]
