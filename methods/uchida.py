"""Uchida, Nagai, Sakazawa, Satoh: Embedding Watermarks into Deep Neural Networks (ICMR 2017; code:
github.com/yu4u/dnn-watermark)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import ConfigError, among
from bench.models import weights
from bench.types import Key, Task
from methods import _commitment as commitment
from methods._regulariser import Regulariser


@dataclass(frozen=True)
class Uchida(Regulariser):
    """Bits in the signs of X w, w the marked weight averaged over its output channels (Sec. 3.3, Eq. 2 to 4).

    A convolution (out, in, k, k) gives w in R^M, M = in k k; a linear layer M = in. X in R^{n x M} is the secret:
    `random` (iid N(0, 1), the paper's best), `direct` (one 1 per row, distinct columns), `diff` (one +1 and one
    -1 per row, distinct columns). Capacity: n <= M, for diff 2n <= M. Embedding loss: the sum of the bits' binary
    cross-entropies, times lambda_ (the paper's: 0.01).

    binding (ours): `none`, as published: X is whatever the claimant shows. `hash`: X is a function of a
    committed 32-byte secret and the message (SHAKE-256), which verification recomputes; random projection only.
    """

    projection: str = among("random", "direct", "diff")
    binding: str = among("none", "hash")

    reduction = "sum"
    version = 2  # 2: never in a convolution that sees padding only

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.binding == "hash" and self.projection != "random":
            raise ConfigError(f"method.binding=hash needs method.projection=random, not {self.projection}")

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n], secret `projection` [n, M] (and `seed` [32] uint8 when bound). ConfigError if n > capacity."""
        columns = 2 if self.projection == "diff" else 1
        what = "projected weights (inputs x kernel area)" + (", two a bit" if columns == 2 else ", one a bit")
        need = self.n_bits * columns
        name = weights.choose(host, self.layer, lambda w: w[0].numel(), need, what)
        m = weights.read(host, name)[0].numel()
        message = rng.integers(0, 2, self.n_bits).astype(bool)
        if self.binding == "hash":
            seed = commitment.draw_seed(rng)
            secret = {"projection": bound_projection(seed, message, m), "seed": torch.from_numpy(seed)}
        else:
            secret = {"projection": self._project(rng, m)}
        return Key(torch.from_numpy(message), secret, (name,))

    def _project(self, rng: np.random.Generator, m: int) -> Tensor:
        n = self.n_bits
        if self.projection == "random":
            return torch.from_numpy(rng.standard_normal((n, m), dtype=np.float32))
        x = torch.zeros(n, m)
        columns = torch.from_numpy(rng.permutation(m))
        x[torch.arange(n), columns[:n]] = 1.0
        if self.projection == "diff":
            x[torch.arange(n), columns[n : 2 * n]] = -1.0
        return x

    def reader(self, key: Key, device: torch.device) -> Callable[[Tensor], Tensor]:
        x = key.secret["projection"].to(device)
        return lambda weight: x @ weight.mean(0).reshape(-1)

    @torch.no_grad()
    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """How the output channels differ from their mean."""
        weight = weights.read(model, key.where[0])
        return {key.where[0]: weight - weight.mean(0)}

    def accepts(self, key: Key) -> bool:
        """With binding, that the projection is the one its committed seed and message generate."""
        m = key.secret["projection"].shape[1]
        return self.binding == "none" or commitment.follows(
            key, lambda seed, message: {"projection": bound_projection(seed, message, m)}
        )


def bound_projection(seed: np.ndarray, message: np.ndarray, m: int) -> Tensor:
    """X [n, M] iid N(0, 1) from SHAKE-256(seed || message bits), by Box-Muller: the same on every platform."""
    return commitment.normal(seed, commitment.packed(message), (len(message), m))
