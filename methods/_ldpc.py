"""Gallager's regular low-density parity-check codes, soft decoding by sum-product.

In place of a package: importing `ldpc` (2.4.1) takes stim, pymatching and sinter, installing it pytest as well, for
codes of quantum computers; `pyldpc` (the papers') takes numba. Forty lines of numpy decode a word in 2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from methods import _commitment as commitment

ROUNDS = 30
CERTAIN = 40.0  # largest log likelihood ratio of a channel


@dataclass(frozen=True, eq=False)
class Code:
    """checks [m, d_c]: the bits of a word whose sum is even, for each check; length: bits of a word."""

    checks: np.ndarray
    length: int

    @cached_property
    def solved(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pivots [r], free [k], rows [r, k]): bits that follow, bits that are free, those a pivot is the sum of."""
        h = np.zeros((len(self.checks), self.length), bool)
        np.put_along_axis(h, self.checks, True, 1)
        pivots: list[int] = []
        for column in range(self.length):
            r = len(pivots)
            found = np.flatnonzero(h[r:, column])
            if not len(found):
                continue
            h[[r, r + found[0]]] = h[[r + found[0], r]]
            others = h[:, column].copy()
            others[r] = False
            h[others] ^= h[r]
            pivots.append(column)
        free = np.setdiff1d(np.arange(self.length), pivots)
        return np.array(pivots), free, h[: len(pivots), free]

    @property
    def size(self) -> int:
        """k: bits of a message, at most."""
        return len(self.solved[1])

    def places(self, n: int) -> np.ndarray:
        """Where the n bits of a message are in a word: it is systematic."""
        return self.solved[1][:n]

    def encode(self, message: np.ndarray) -> np.ndarray:
        """The word [length] of bool of a message [n <= k], filled with zeros."""
        pivots, free, rows = self.solved
        word = np.zeros(self.length, bool)
        word[free[: len(message)]] = message
        word[pivots] = (rows @ word[free].astype(np.int64)) % 2 == 1
        return word

    def decode(self, ratios: np.ndarray) -> np.ndarray:
        """log P(1) / P(0) of each bit, [length], from those of the channel: at most ROUNDS rounds of sum-product."""
        channel = -np.clip(ratios, -CERTAIN, CERTAIN)  # of 0 to 1: then a check's is the product of tanh(x / 2)
        back, total = np.zeros(self.checks.shape), channel
        for _ in range(ROUNDS):
            if not ((total < 0)[self.checks].sum(1) % 2).any() and total.all():
                break
            ahead = np.tanh((total[self.checks] - back) / 2)
            size = np.log(np.abs(ahead).clip(1e-300))
            sign = np.where(ahead < 0, -1.0, 1.0)
            joint = np.exp(size.sum(1, keepdims=True) - size).clip(max=1 - 1e-15)
            back = 2 * np.arctanh(sign.prod(1, keepdims=True) * sign * joint)
            total = channel + np.bincount(self.checks.ravel(), back.ravel(), self.length)
        return -total


@lru_cache(maxsize=8)
def regular(n: int, d_v: int, d_c: int) -> Code:
    """The shortest code for n bits in which each bit is in d_v checks, each of d_c bits: rate 1 - d_v / d_c, and a
    little more for checks that follow from others. Gallager's construction, public and the same everywhere."""
    blocks = max(1, -(-(n - d_v + 1) // (d_c - d_v)))
    length = blocks * d_c
    words = commitment.words(np.zeros(32, np.uint8), f"ldpc {n} {d_v} {d_c}".encode(), (d_v - 1) * length)
    orders = [np.arange(length), *np.argsort(words.reshape(d_v - 1, length), 1, kind="stable")]
    return Code(np.concatenate([order.reshape(blocks, d_c) for order in orders]).astype(np.int64), length)
