"""Majority of several projections: a baseline after Li, Zhao, Du, Wang (AAAI 2024, arXiv 2402.12720)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import ConfigError, within
from bench.models import weights
from bench.types import Key, Task
from methods._regulariser import Regulariser


@dataclass(frozen=True)
class Vote(Regulariser):
    """One message under T = `votes` projections X_t, iid N(0, 1), of the weight averaged over its output channels, w,
    as Uchida's; a bit is what most of its T readings, the signs of X_t w, say. T is odd.

    Li et al. verify one message in several rounds, to get past the capacity of one; NeuralMark (arXiv 2507.11137)
    compares with that as VoteMark, whose code is not public. Ours, for want of both texts: Uchida's readings, all
    rounds in one weight and embedded at once, T = 3, the least majority there is. Embedding loss: the sum of T n binary
    cross-entropies, times lambda_ (Uchida's: 0.01): a reading pulls as hard as one of Uchida's, the whole T times so.

    Logits: the median of the T readings, whose sign is the majority's exactly. Their gradient is that of the readings'
    mean (straight through): the median's own is that of the one reading which turns the vote, and who follows it moves
    that one past the others, and the vote stays (measured on digits, of 127 bits to be turned by the least change: 2
    by the median's, all by the mean's). Capacity: n <= M, as Uchida's, M = in k k. All T n readings can be right
    whatever the message while T n <= M. Beyond, embedding is not refused and gets incomplete: of random projections no
    more than 2 M readings can all be right (Cover 1965). Measured, T = 3, M = 144: no bit wrong at T n = M, 3% of them
    at 2 M, 11% at 3 M (23% of the readings).
    """

    votes: int = within(1)

    reduction = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.votes % 2 == 0:
            raise ConfigError(f"method.votes={self.votes}: an even number of votes can be a tie; make it odd")

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n], secret `projection` [T, n, M]. ConfigError if n > M."""
        what = "projected weights (inputs x kernel area), one a bit"
        name = weights.choose(host, self.layer, lambda w: w[0].numel(), self.n_bits, what)
        shape = (self.votes, self.n_bits, weights.read(host, name)[0].numel())
        message = rng.integers(0, 2, self.n_bits).astype(bool)
        x = rng.standard_normal(shape, dtype=np.float32)
        return Key(torch.from_numpy(message), {"projection": torch.from_numpy(x)}, (name,))

    def reader(self, key: Key, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A function of the marked weight that gives the readings [T, n]."""
        x = key.secret["projection"].to(device)
        return lambda weight: x @ weight.mean(0).reshape(-1)

    def embedding_loss(self, y: Tensor, truth: Tensor) -> Tensor:
        return super().embedding_loss(y, truth.expand_as(y))

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        return majority(super().logits(model, key))

    @torch.no_grad()
    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """How the output channels differ from their mean."""
        weight = weights.read(model, key.where[0])
        return {key.where[0]: weight - weight.mean(0)}


def majority(readings: Tensor) -> Tensor:
    """[n] of readings [T, n], T odd: their median, which has the sign that most have, with the gradient of their mean.
    Not their sum, which one large reading can turn, nor a sum of anything smooth, which near ties can."""
    # What is added is exactly 0: the mean plus a difference from it would be rounded, and lose the sign.
    return readings.detach().median(0).values + (readings - readings.detach()).mean(0)
