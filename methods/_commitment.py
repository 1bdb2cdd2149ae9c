"""Secrets that follow from a commitment: SHAKE-256 over a 32-byte seed and all else that is free, on any platform.

Whatever else the claimant could choose (message, pilots, layer names) is hashed with the seed: choosing it otherwise
changes everything that follows, so that only tries are left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.types import Key


def words(seed: np.ndarray, content: bytes, count: int) -> np.ndarray:
    """uint64 [count] from SHAKE-256(seed [32] of uint8 || content)."""
    return np.frombuffer(hashlib.shake_256(seed.astype(np.uint8).tobytes() + content).digest(8 * count), "<u8")


def normal(seed: np.ndarray, content: bytes, shape: tuple[int, int]) -> Tensor:
    """float32 of `shape`, iid N(0, 1) from SHAKE-256(seed || content), by Box-Muller."""
    count = shape[0] * shape[1]
    half = (count + 1) // 2
    u = ((words(seed, content, 2 * half) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    radius, angle = np.sqrt(-2 * np.log(u[:half])), 2 * np.pi * u[half:]
    found = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(found.astype(np.float32).reshape(shape))


def packed(message: np.ndarray) -> bytes:
    """The message [n] as content: eight bits a byte, the first highest."""
    return np.packbits(message.astype(bool)).tobytes()


def draw_seed(rng: np.random.Generator) -> np.ndarray:
    """A fresh seed, [32] of uint8."""
    return np.frombuffer(rng.bytes(32), np.uint8).copy()


def follows(key: Key, made: Callable[[np.ndarray, np.ndarray], dict[str, Tensor]]) -> bool:
    """Whether a key has a committed `seed` and holds what follows from it, made(seed [32], message [n]): integers
    exactly, floats to rounding."""
    found = {name: x.cpu() for name, x in {**key.secret, "message": key.message}.items()}
    if "seed" not in found:
        return False
    expected = made(found["seed"].numpy(), found["message"].numpy())
    return all(
        torch.allclose(found[name], x, rtol=1e-4, atol=1e-5) if x.is_floating_point() else torch.equal(found[name], x)
        for name, x in expected.items()
    )
