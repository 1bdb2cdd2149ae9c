"""What anybody sees of a network's weights, layer by layer, where a mark may show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from bench.models import branches
from bench.models.weights import candidates, weights

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
# Of a layer: logarithms of its standard deviation and of `ratio`, kurtosis, how far its most frequent magnitude is
# above chance, and QUANTILES of its weights in standard deviations.
FEATURES = 4 + len(QUANTILES)
CHANCE = 0.01  # magnitudes of an unmarked layer expected to be taken for repeated ones


@dataclass(frozen=True)
class Layer:
    """One weight [out, ...], as an attacker looks at it."""

    weight: Tensor

    @cached_property
    def spread(self) -> float:
        """Its standard deviation."""
        return float(self.weight.double().std())

    @cached_property
    def ratio(self) -> float:
        """std(mean over out of W) sqrt(out) / std(W): 1 if rows are independent, more where their mean was trained."""
        w = self.weight.double()
        return float(w.mean(0).std() * math.sqrt(len(w)) / w.std()) if w[0].numel() > 1 and self.spread > 0 else 1.0

    @cached_property
    def counted(self) -> tuple[Tensor, Tensor]:
        """(magnitude, how often it is there) of all that are not 0: pruned weights are no mark."""
        sizes = self.weight.abs().reshape(-1)
        return sizes[sizes > 0].unique(return_counts=True)

    @cached_property
    def bound(self) -> int:
        """The count from which a magnitude is repeated beyond chance.

        Floats meet by chance: of n1 magnitudes that occur once, n1 l^(m-1) / m! occur m times, l being the mean number
        on each float. It is taken from the pairs, and fourfold, for floats are nearer together where they are small.
        """
        counts = self.counted[1]
        ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
        mean, m = 8 * twos / max(ones, 1), 2
        if mean >= 1:  # float16, quantised weights: everything is repeated
            return int(counts.max()) + 1
        while m < 3 or ones * mean ** (m - 1) / math.factorial(m) > CHANCE:
            m += 1
        return m

    @cached_property
    def repeated(self) -> Tensor:
        """Mask, as the weight, of magnitudes that are there more often than chance has it."""
        values, counts = self.counted
        return torch.isin(self.weight.abs(), values[counts >= self.bound])

    @cached_property
    def features(self) -> np.ndarray:
        """FEATURES numbers."""
        w = self.weight.double().reshape(-1).cpu().numpy()
        z = (w - w.mean()) / max(self.spread, 1e-12)
        most = int(self.counted[1].max()) if len(self.counted[1]) else 0
        excess = math.log(max(1.0, most / (self.bound - 1)))
        first = [math.log(max(self.spread, 1e-12)), math.log(max(self.ratio, 1e-12)), (z**4).mean(), excess]
        return np.array([*first, *np.quantile(w / max(self.spread, 1e-12), QUANTILES)])


def layers(model: nn.Module) -> dict[str, Layer]:
    """The weights in which a method may leave its mark: those of a module that it added, if there is one, or else all
    that bench.models.weights calls candidates."""
    added = {name: w for name, w in weights(model).items() if name.startswith(f"{branches.NAME}.")}
    return {name: Layer(w.detach().float()) for name, w in (added or candidates(model)).items()}


def conspicuous(found: dict[str, Layer], by: str) -> tuple[str | None, float]:
    """The layer that stands out most and by how much, a logarithm; (None, 0) where nothing can be compared.

    by: `ratio` (Layer.ratio against 1), `spread` (the standard deviation against the median of others of its shape).
    """
    scores = {}
    for name, layer in found.items():
        if by == "ratio":
            scores[name] = abs(math.log(max(layer.ratio, 1e-12)))
            continue
        same = [x.spread for n, x in found.items() if n != name and x.weight.shape == layer.weight.shape]
        if len(same) > 1 and min(*same, layer.spread) > 0:
            scores[name] = abs(math.log(layer.spread / float(np.median(same))))
    best = max(scores, key=scores.__getitem__, default=None)
    return best, scores.get(best, 0.0)


def short(name: str) -> str:
    return name.removesuffix(".weight")
