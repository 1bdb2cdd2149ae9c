"""Weight quantisation: symmetric, uniform, round to nearest, dequantised for evaluation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import among, within
from bench.metrics import Knob
from bench.models.weights import weights
from bench.types import Attack, Fit, Snapshot, Victim


@dataclass(frozen=True)
class Quantize(Attack):
    """Convolution and linear weights to `bits` bits, one scale per `tensor` or per output `channel`.

    dynamic: torch's own dynamic int8 of linear layers as one more point (CPU).
    """

    knobs: ClassVar[dict[str, Knob]] = {"bits": Knob("Bits per weight", None, rises=False)}
    bits: list[int] = within(2, 16)
    granularity: list[str] = among("tensor", "channel")
    dynamic: bool

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        model = copy.deepcopy(victim.model)
        original = {name: w.detach().clone() for name, w in weights(model).items()}
        for granularity in self.granularity:
            for bits in self.bits:
                with torch.no_grad():
                    for name, w in original.items():
                        model.get_parameter(name).copy_(quantized(w, bits, granularity == "channel"))
                yield Snapshot(f"bits/{granularity}", bits, model)
        if self.dynamic:
            yield _dynamic_int8(victim.model, victim.task.example(2).cpu())


def quantized(weight: Tensor, bits: int, per_channel: bool) -> Tensor:
    """The nearest of the 2^bits - 1 levels scale * {-q, ..., q}, q = 2^(bits - 1) - 1; dequantised, same shape.

    The scale is the largest magnitude over the whole weight or over each output channel (first dimension).
    """
    q = 2 ** (bits - 1) - 1
    largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) if per_channel else weight.abs().max()
    scale = (largest / q).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / scale).round().clamp(-q, q) * scale


def _dynamic_int8(model: nn.Module, inputs: Tensor) -> Snapshot:
    knob = "bits/dynamic-int8"
    if not any(type(m) is nn.Linear for m in model.modules()):
        return Snapshot(knob, 8, model, skipped="no linear layer to quantise dynamically")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this API will go; then the point is skipped
        try:
            from torch.ao.quantization import quantize_dynamic

            small = quantize_dynamic(copy.deepcopy(model).cpu(), {nn.Linear}, dtype=torch.qint8)
        except (ImportError, RuntimeError, NotImplementedError) as error:
            return Snapshot(knob, 8, model, skipped=f"torch's dynamic int8 is not available here: {error}")
        try:
            with torch.no_grad():
                small(inputs)
        except (TypeError, AttributeError, RuntimeError) as error:
            said = str(error).split("\n")[0]
            return Snapshot(knob, 8, model, skipped=f"the network uses a linear layer's weight by itself: {said}")
    return Snapshot(knob, 8, small)
