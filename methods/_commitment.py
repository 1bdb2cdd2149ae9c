"""Secrets that follow from a commitment: SHAKE-256 over a 32-byte seed and all else that is free, on any platform.

Whatever else the claimant could choose (message, pilots, layer names) is hashed with the seed: choosing it otherwise
changes everything that follows, so that only tries are left.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def words(seed: np.ndarray, content: bytes, count: int) -> np.ndarray:
    """uint64 [count] from SHAKE-256(seed [32] of uint8 || content)."""
    return np.frombuffer(hashlib.shake_256(seed.astype(np.uint8).tobytes() + content).digest(8 * count), "<u8")


def packed(message: np.ndarray) -> bytes:
    """The message [n] as content: eight bits a byte, the first highest."""
    return np.packbits(message.astype(bool)).tobytes()


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
