"""Secrets that follow from a commitment: SHAKE-256 over a 32-byte seed and the message, the same on every platform.

Who commits to the seed before the model is published can only draw further seeds, not choose what follows from one.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def words(seed: np.ndarray, message: np.ndarray, count: int) -> np.ndarray:
    """uint64 [count] from SHAKE-256(seed [32] of uint8 || message [n] as packed bits)."""
    commitment = seed.astype(np.uint8).tobytes() + np.packbits(message.astype(bool)).tobytes()
    return np.frombuffer(hashlib.shake_256(commitment).digest(8 * count), "<u8")


def draw_seed(rng: np.random.Generator) -> np.ndarray:
    """A fresh seed, [32] of uint8."""
    return np.frombuffer(rng.bytes(32), np.uint8).copy()


def follows(secret: dict[str, Tensor], made: dict[str, Tensor]) -> bool:
    """Whether the secret holds what its committed seed gives: integers exactly, floats to rounding."""
    return all(
        torch.allclose(secret[name].cpu(), x, rtol=1e-4, atol=1e-5)
        if x.is_floating_point()
        else torch.equal(secret[name].cpu(), x)
        for name, x in made.items()
    )
