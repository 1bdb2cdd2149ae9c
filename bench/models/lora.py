"""Low-rank adaptation (Hu et al., ICLR 2022): W + alpha / rank B A in place of W, of which A and B alone train.

As the public code has it, A is drawn and B is zero at the start. Ours: of a layer that holds queries, keys and values
there is one A and one B (peft's, too); the official code adapts queries and values, each with its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench import spec
from bench.errors import ConfigError

if TYPE_CHECKING:
    from bench.types import Fit, Task

TRAINS = "adapter"  # what Method.trains_on says of it


@dataclass(frozen=True)
class Lora:
    """rank; alpha: of the scale alpha / rank; targets: last parts of the names of the linear layers."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


class Change(nn.Module):
    """W [out, in] -> W + scale B [out, r] A [r, in]."""

    def __init__(self, weight: Tensor, lora: Lora):
        super().__init__()
        self.scale = lora.alpha / lora.rank
        self.a = nn.Parameter(torch.empty(lora.rank, weight[0].numel(), device=weight.device))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], lora.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.b @ self.a).view(weight.shape)


def noted(net: nn.Module, options: dict[str, Any]) -> None:
    """Note in a network what of it is to be adapted. Raises ConfigError for what cannot be."""
    names = [f.name for f in fields(Lora)]
    if sorted(options) != sorted(names):
        raise ConfigError(f"model.lora takes exactly {', '.join(names)}")
    found = Lora(options["rank"], float(options["alpha"]), tuple(options["targets"]))
    if not isinstance(found.rank, int) or found.rank < 1 or found.alpha <= 0:
        raise ConfigError("model.lora: rank must be at least 1, alpha above 0")
    net.lora = found
    if not adapted(net):
        last = sorted({n.rpartition(".")[2] for n, m in net.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(f"model.lora.targets={list(found.targets)}: no linear layer; there are {', '.join(last)}")


def of(net: nn.Module) -> Lora | None:
    return getattr(net, "lora", None)


def adapted(net: nn.Module) -> list[str]:
    """Names of the layers that are adapted."""
    targets = getattr(net, "lora", Lora(1, 1.0, ())).targets
    return [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] in targets]


@contextmanager
def attached(net: nn.Module, lora: Lora, names: list[str], seed: int) -> Iterator[list[str]]:
    """`net` with a change at each layer of `names`; the names of the modules that then train. Afterwards, whatever
    came of them is in the weights, which are plain again."""
    torch.manual_seed(seed)
    for name in names:
        layer = net.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", Change(layer.weight, lora))
    try:
        yield [f"{name}.parametrizations.weight.0" for name in names]
    finally:
        for name in names:
            layer = net.get_submodule(name)
            parametrize.remove_parametrizations(layer, "weight")
            if "bias" in layer._parameters:  # parameters in the order that they had
                layer._parameters["bias"] = layer._parameters.pop("bias")


def tuned(net: nn.Module, task: Task, fit: Fit, **how: Any) -> nn.Module:
    """`net` trained through a change of the layers noted in it, in place; the change is then in its weights."""
    with attached(net, of(net), adapted(net), spec.derive(fit.seed, "lora")) as only:
        fit(net, task, only=only, **how)
    return net.requires_grad_(True)
