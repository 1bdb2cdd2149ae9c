"""Pruning: zero a fraction of the convolution and linear weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.errors import ConfigError, among, within
from bench.metrics import Knob
from bench.models.weights import weights
from bench.types import Fit, Snapshot, TunedAttack, Victim


@dataclass(frozen=True)
class Prune(TunedAttack):
    """Zero the smallest (`magnitude`) or random weights; normalisation, biases and buffers are left alone.

    scope: `global` (one ranking over all weights), `layer` (the same fraction of each), `marked` (the layer that
    carries the mark only, which must then be in `knows`; with `random` it is what NeuralMark's public code calls
    pruning). finetune_after: epochs of fine-tuning on the attacker's data after each ratio; pruned weights stay 0.
    """

    knobs: ClassVar[dict[str, Knob]] = {"ratio": Knob("Share of weights set to 0")}
    ratios: list[float] = within(0.0, 1.0)
    criterion: str = among("magnitude", "random")
    scope: str = among("global", "layer", "marked")
    finetune_after: int = within(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "marked" and not {"layer", "key"} & set(self.knows):
            raise ConfigError("attack.scope=marked needs to know the layer: attack.knows=[weights,layer]")
        if self.finetune_after and self.data == "none":
            raise ConfigError("attack.finetune_after needs data: attack.data=attacker")

    def skip(self, victim: Victim) -> str | None:
        return "no marked layer to prune" if self.scope == "marked" and not victim.where else None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model = copy.deepcopy(victim.model)
        names = list(victim.where) if self.scope == "marked" else list(weights(model))
        groups = [names] if self.scope == "global" else [[name] for name in names]
        original = {name: model.get_parameter(name).detach().clone() for name in names}
        state = copy.deepcopy(model.state_dict()) if self.finetune_after else None
        # Ranked once: the sets of rising ratios are nested, and exactly the stated fraction goes.
        orders = [self._order([original[name] for name in group], rng) for group in groups]
        for ratio in self.ratios:
            if state is not None:
                model.load_state_dict(state)
            keep = {}
            for group, order in zip(groups, orders, strict=True):
                keep |= _masks({name: original[name] for name in group}, order, ratio)
            with torch.no_grad():
                for name, mask in keep.items():
                    model.get_parameter(name).copy_(original[name] * mask)
            if self.finetune_after:
                held = {name: model.get_parameter(name) for name in keep}
                fit(
                    model,
                    victim.task,
                    step=lambda _, held=held, keep=keep: [w.mul_(keep[n]) for n, w in held.items()],
                    **self.schedule(self.finetune_after),
                )
            yield Snapshot("ratio", ratio, model)

    def _order(self, tensors: list[Tensor], rng: np.random.Generator) -> Tensor:
        """Positions in the concatenated weights, first to go first."""
        if self.criterion == "random":
            count = sum(t.numel() for t in tensors)
            return torch.from_numpy(rng.permutation(count)).to(tensors[0].device)
        return torch.cat([t.abs().reshape(-1) for t in tensors]).argsort(stable=True)


def _masks(tensors: dict[str, Tensor], order: Tensor, ratio: float) -> dict[str, Tensor]:
    """1 for what stays, 0 for the first round(ratio * count) of `order`; shapes as the tensors'."""
    flat = torch.ones(len(order), device=order.device)
    flat[order[: round(ratio * len(order))]] = 0.0
    parts = flat.split([t.numel() for t in tensors.values()])
    return {name: part.view(t.shape) for (name, t), part in zip(tensors.items(), parts, strict=True)}
