"""Yao, Song, Jin: NeuralMark, a hashed watermark filter (arXiv 2507.11137, AAAI 2026;
code: github.com/AIResearch-Group/NeuralMark)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench import metrics
from bench.errors import within
from bench.models import weights
from bench.types import Fit, Key, Task
from methods._regulariser import Regulariser

MANTISSA, HEAVY = 0x7FFFFF, 2.0**64  # of a float32; by which a row outweighs all others


@dataclass(frozen=True)
class Neuralmark(Regulariser):
    """Bits in the signs of z K; the message is a hash of K and filters the weights that z averages.

    Secret `matrix` K [k, n] iid N(0, 1) float32; message = first n bits of SHAKE-256(K); filter: `rounds` times keep
    the positions i of the flattened weight where message[i mod n] = 1; pool: average the rest, strided, to
    z in R^k. Embedding loss: the mean of the bits' binary cross-entropies, times lambda_ (the paper's: 1).
    Verification recomputes the message from K. The paper's security boundary is 2^-128 (227 of 256 bits).

    Ablations: rounds 0, 1, 2, 4 (the paper's), 6; pool false (ours: z = the first k weights left); binding false
    (a random message, nothing to recompute).
    """

    boundary = 2.0**-128
    version = 2  # 2: never in a convolution that sees padding only

    k: int = within(1)
    rounds: int = within(0)
    pool: bool
    binding: bool

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n], secret `matrix` [k, n]. Raises ConfigError for a layer the filter would leave too little of."""
        unit = max(self.k, self.n_bits) if self.rounds else self.k
        need = unit * 2**self.rounds * (2 if self.rounds else 1)
        # Each round keeps about half, more or less with the ones in the message: hence the factor 2.
        name = "k" if unit == self.k else "n_bits"
        what = f"weights ({name}={unit} x 2^{self.rounds} filter rounds{' x 2' if self.rounds else ''})"
        name = weights.choose(host, self.layer, Tensor.numel, need, what)
        size = weights.read(host, name).numel()
        while True:
            matrix = rng.standard_normal((self.k, self.n_bits), dtype=np.float32)
            message = hashed(matrix) if self.binding else rng.integers(0, 2, self.n_bits).astype(bool)
            # A short message may have so few ones that the filter leaves less than k weights: draw again.
            if kept(size, message, self.rounds) >= self.k:
                return Key(torch.from_numpy(message), {"matrix": torch.from_numpy(matrix)}, (name,))

    def reader(self, key: Key, device: torch.device) -> Callable[[Tensor], Tensor]:
        matrix, message = key.secret["matrix"].to(device), key.message.to(device)
        index: Tensor | None = None

        def read(weight: Tensor) -> Tensor:
            nonlocal index
            if index is None:
                # The filter is an index set fixed by the message: found once, then a gather.
                index = self._rows(filtered(torch.arange(weight.numel(), device=device), message, self.rounds))
            # reshape, not view: a channels_last weight has another stride order than (out, in, kh, kw)
            return weight.reshape(-1)[index].mean(0) @ matrix

        return read

    def _rows(self, values: Tensor) -> Tensor:
        """What the filter left, cut to a multiple of k, as rows [., k] whose mean is z; without pooling one row."""
        return values[: len(values) // self.k * self.k if self.pool else self.k].view(-1, self.k)

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        # Read once, the values themselves are filtered: an index set would cost several times as much.
        weight = weights.read(model, key.where[0]).reshape(-1)
        matrix, message = key.secret["matrix"].to(weight.device), key.message.to(weight.device)
        return self._rows(filtered(weight, message, self.rounds)).mean(0) @ matrix

    @torch.no_grad()
    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """The positions that the filter drops, and what is cut off after it."""
        weight = weights.read(model, key.where[0])
        message = key.message.to(weight.device)
        flat = weight.flatten().clone()  # (out, in, kh, kw) order, as it is read
        flat[self._rows(filtered(torch.arange(len(flat), device=flat.device), message, self.rounds))] = 0
        return {key.where[0]: flat.view(weight.shape)}

    def accepts(self, key: Key) -> bool:
        """That the message is the hash of the matrix."""
        return not self.binding or bool((hashed(key.secret["matrix"].cpu().numpy()) == key.message.cpu().numpy()).all())

    def forgeries(
        self, model: nn.Module, rng: np.random.Generator, task: Task, fit: Fit, tries: list[int]
    ) -> Iterator[tuple[str, int, Key]]:
        """Keys whose last row outweighs all others, so that every bit is that row's sign times that of z's last value,
        whatever message the hash gives; the mantissas of its last two entries are counted through. A try is a block of
        SHAKE-256, 136 bytes, after a sponge that has absorbed the rest; z is averaged for the best alone. Verification
        asks for no distribution of K."""
        if not (self.binding and tries):
            return
        drawn = self.keygen(model, rng, task)
        matrix, n = drawn.secret["matrix"].numpy(), self.n_bits
        matrix[-1] = np.copysign(HEAVY * (1 + np.abs(matrix[-1])), matrix[-1])
        signs, size, padding = np.packbits(matrix[-1] > 0).tobytes(), (n + 7) // 8, -n % 8
        signs = int.from_bytes(signs) >> padding
        entries = matrix.reshape(-1).view(np.uint32)[-2:]
        high, low = (int(x) & ~MANTISSA for x in entries)
        sponge = hashlib.shake_256(np.ascontiguousarray(matrix, "<f4").tobytes()[:-8])
        best, least, weight = drawn, 2.0, weights.read(model, drawn.where[0])
        for count in range(1, tries[-1] + 1):
            tail = high | count >> 23 & MANTISSA, low | count & MANTISSA
            state = sponge.copy()
            state.update(struct.pack("<2I", *tail))
            wrong = ((int.from_bytes(state.digest(size)) >> padding) ^ signs).bit_count()
            if min(wrong, n - wrong) < least * n:  # the sign of z's last value, which decides, is not known yet
                entries[:] = tail
                message = hashed(matrix)
                if kept(weight.numel(), message, self.rounds) >= self.k:
                    key = Key(torch.from_numpy(message), {"matrix": torch.from_numpy(matrix.copy())}, drawn.where)
                    if (error := metrics.ber(self.extract(model, key, task), key.message)) < least:
                        best, least = key, error
            if count in tries:
                yield "grind", count, best


def hashed(matrix: np.ndarray) -> np.ndarray:
    """First n bits of SHAKE-256 over K [k, n] as little-endian float32 in C order; bytes' high bits first."""
    n = matrix.shape[1]
    stream = hashlib.shake_256(np.ascontiguousarray(matrix, "<f4").tobytes()).digest((n + 7) // 8)
    return np.unpackbits(np.frombuffer(stream, np.uint8))[:n].astype(bool)


def filtered(values: Tensor, message: Tensor, rounds: int) -> Tensor:
    """`rounds` times: cut values [L] to a multiple of n, keep those at i with message[i mod n] = 1."""
    n = message.numel()
    for _ in range(rounds):
        values = values[: len(values) // n * n].view(-1, n)[:, message].reshape(-1)
    return values


def kept(size: int, message: np.ndarray, rounds: int) -> int:
    """How many of `size` weights the filter leaves."""
    for _ in range(rounds):
        size = size // len(message) * int(message.sum())
    return size
