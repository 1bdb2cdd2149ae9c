"""A victim that is a low-rank change of a public network: the change dropped, rescaled, factored anew, or joined by
another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench import spec
from bench.errors import ConfigError, within
from bench.metrics import Knob
from bench.models import lora
from bench.models.weights import weights
from bench.types import Fit, Snapshot, TunedAttack, Victim

NO_HOST = "n/a: the victim was not made from a public network"
SMALL = 1e-4  # singular values below this share of the largest are rounding
LEAST = 1e-7  # change of a weight, of its largest, that is none


@dataclass(frozen=True)
class Adapter(TunedAttack):
    """The change is W' - W0, whoever released it merged or not (Hu et al. 2022 have both).

    scales: W0 + scale (W' - W0) in all changed layers; 0 drops the adapter. rotated: its factors B R, R^-1 A with R
    drawn from GL(r), multiplied out again: another adapter, the same function. others: changes of the same rank, each
    trained from the host for `epochs` on the attacker's data, added one after another (0: none). All of this is ours.
    """

    knobs: ClassVar[dict[str, Knob]] = {
        "scale": Knob("Scale of the adapter", 1.0, rises=False),
        "merged": Knob("Adapters added"),
    }
    needs = ("weights", "host")

    scales: list[float] = within(0.0, 100.0)
    others: int = within(0)
    epochs: int = within(1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.others and self.data == "none":
            raise ConfigError("attack.others train: they need attack.data=attacker (or attack.others=0)")

    def skip(self, victim: Victim) -> str | None:
        if victim.host is None:
            return NO_HOST
        if not (found := changes(victim.host(), victim.model)):
            return "the victim's weights are those of its host: there is no adapter"
        name = max(found, key=lambda name: rank(found[name]))
        if rank(found[name]) == min(found[name].shape):
            return f"{name} was changed in full rank: there is no adapter, attack=merge leads back to the host"
        return None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        host = victim.host()
        model, found = copy.deepcopy(victim.model), changes(host, victim.model)
        base = {name: w.detach().clone() for name, w in weights(host).items() if name in found}

        def put(new: dict[str, Tensor]) -> nn.Module:
            with torch.no_grad():
                for name, change in new.items():
                    weights(model)[name].copy_(base[name] + change)
            return model

        for scale in self.scales:
            yield Snapshot("scale", scale, put({name: scale * change for name, change in found.items()}))
        yield Snapshot("rotated", None, put({name: rotated(change, rng) for name, change in found.items()}))
        put(found)
        for number in range(1, self.others + 1):
            other = copy.deepcopy(host)
            about = lora.of(other) or lora.Lora(max(map(rank, found.values())), 32.0, ())
            names = [name.removesuffix(".weight") for name in found]
            with lora.attached(other, about, names, spec.derive(fit.seed, "adapter", number)) as only:
                loop = fit.seeded(int(rng.integers(2**62)))
                loop(other, victim.task, only=only, **self.schedule(self.epochs))
            with torch.no_grad():
                for name, change in changes(host, other).items():
                    weights(model)[name].add_(change)
            yield Snapshot("merged", number, model, continues=number > 1)


@torch.no_grad()
def changes(host: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """W' - W0 of every weight that is not the host's."""
    before, after = weights(host), weights(model)
    found = {n: after[n] - w for n, w in before.items() if n in after and after[n].shape == w.shape}
    return {n: d for n, d in found.items() if float(d.abs().max()) > LEAST * float(before[n].abs().max())}


def rank(change: Tensor) -> int:
    """Of a weight [out, in, ...] as a matrix, up to rounding."""
    values = torch.linalg.svdvals(change.double().flatten(1))
    return int((values > SMALL * values[0]).sum())


def rotated(change: Tensor, rng: np.random.Generator) -> Tensor:
    """B R R^-1 A: the factors of a change, R drawn from GL(r), and their product."""
    left, values, right = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
    r = rank(change)
    turn = torch.from_numpy(rng.standard_normal((r, r))).to(change.device)
    b, a = (left[:, :r] * values[:r]) @ turn, torch.linalg.solve(turn, right[:r])
    return (b.to(change.dtype) @ a.to(change.dtype)).view(change.shape)
