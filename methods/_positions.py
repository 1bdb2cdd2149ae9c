"""Bits in weights at secret positions over many layers: which layers, distinct places, values that are held."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import ConfigError, near
from bench.models import weights
from bench.types import Key
from methods import _commitment as commitment


def layers(model: nn.Module, pattern: str | None) -> list[str]:
    """Names of all convolution and linear weights but the stem's and the head's, or of those that a glob picks (without
    `.weight`; the stem too). ConfigError where it picks none."""
    names = list(weights.candidates(model))
    if pattern is None:
        return names[1:] or names  # the first is the stem
    found = [n for n in names if fnmatchcase(n.removesuffix(".weight"), pattern)]
    if not found:
        offer = near(pattern, [n.removesuffix(".weight") for n in names], 12)
        raise ConfigError(f"method.layer={pattern} matches no convolution or linear layer; {offer}")
    return found


def sizes(model: nn.Module, names: list[str]) -> np.ndarray:
    """How many numbers each of the weights holds, [layers]."""
    return np.array([weights.read(model, name).numel() for name in names])


def said(names: list[str], counts: np.ndarray) -> bytes:
    """Layers and their sizes as content of a commitment."""
    return json.dumps([names, counts.tolist()]).encode()


def flat(model: nn.Module, names: tuple[str, ...]) -> Tensor:
    """The weights one after another, [N] of float32, differentiable."""
    return torch.cat([weights.read(model, name).reshape(-1) for name in names])


def split(flat: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Positions in the concatenation of layers of `sizes` -> [n, 2] of (layer, position in it), int64."""
    ends = np.cumsum(sizes)
    layer = np.searchsorted(ends, flat, side="right")
    return np.stack([layer, flat - (ends - sizes)[layer]], 1).astype(np.int64)


def first(stream: np.ndarray, total: int, n: int) -> np.ndarray:
    """The first n distinct places below `total` of a stream of uint64, in its order, int64. ConfigError for too few."""
    places = stream % np.uint64(total)
    _, index = np.unique(places, return_index=True)
    if len(index) < n:
        raise ConfigError(f"{total:,} weights are too few to bind {n} positions to a commitment")
    return places[np.sort(index)[:n]].astype(np.int64)


Words = Callable[[int], np.ndarray]  # count -> that many uint64


def drawn(words: Words, total: int, n: int, signs: int) -> tuple[np.ndarray, np.ndarray]:
    """(n distinct places below `total`, int64; `signs` fair +-1, int8), from a stream. ConfigError for n >= total."""
    if n >= total:
        raise ConfigError(f"{n:,} of {total:,} weights cannot be drawn")
    draws = -total * math.log1p(-n / total)  # of which n are distinct, on average
    draws = math.ceil(draws + 8 * math.sqrt(draws)) + 64
    stream = words(draws + -(-signs // 64))
    bits = np.unpackbits(stream[draws:].astype("<u8").view(np.uint8))[:signs]
    return first(stream[:draws], total, n), 2 * bits.astype(np.int8) - 1


Make = Callable[[Words, int], dict[str, Tensor]]  # (a stream, how many weights there are) -> secret


def keygen(
    host: nn.Module, pattern: str | None, rng: np.random.Generator, n_bits: int, binding: str, make: Make
) -> Key:
    """A random message and what `make` draws: from rng, or with binding `hash` from a committed seed, the message and
    the layers' names and sizes."""
    names = layers(host, pattern)
    counts = sizes(host, names)
    message = rng.integers(0, 2, n_bits).astype(bool)
    if binding == "none":
        secret = make(lambda count: rng.integers(0, 2**64, count, dtype=np.uint64), int(counts.sum()))
    else:
        seed = commitment.draw_seed(rng)
        secret = _bound(seed, message, names, counts, make)
        secret |= {"seed": torch.from_numpy(seed), "sizes": torch.from_numpy(counts)}
    return Key(torch.from_numpy(message), secret, tuple(names))


def _bound(
    seed: np.ndarray, message: np.ndarray, names: list[str], counts: np.ndarray, make: Make
) -> dict[str, Tensor]:
    content = said(names, counts) + commitment.packed(message)
    return make(lambda count: commitment.words(seed, content, count), int(counts.sum()))


def pinned(key: Key, make: Make) -> bool:
    """Whether a key of binding `hash` is what its seed, message and layers say; False too where they say nothing."""

    def made(seed: np.ndarray, message: np.ndarray) -> dict[str, Tensor]:
        return _bound(seed, message, list(key.where), key.secret["sizes"].cpu().numpy(), make)

    try:
        return "sizes" in key.secret and commitment.follows(key, made)
    except ConfigError:
        return False


def unlike(
    make: Callable[[int], np.ndarray], count: int, known: np.ndarray, least: float = 0.0, tries: int = 100
) -> np.ndarray:
    """`count` of the magnitudes that make(number) draws, none below `least`, no two alike and none among `known`.

    A float that is taken is drawn again; a layer of few floats must repeat them in the end.
    """
    made = np.zeros(0, known.dtype)
    for attempt in range(tries):
        if len(made) == count:
            break
        new = make(count - len(made)).astype(known.dtype)
        fresh = (new >= least) & ~np.isin(new, known) & ~np.isin(new, made)
        once = np.zeros(len(new), bool)
        once[np.unique(new, return_index=True)[1]] = True
        made = np.concatenate([made, new[fresh & once] if attempt < tries - 1 else new.clip(least)])
    return made


@torch.no_grad()
def write(model: nn.Module, names: tuple[str, ...], positions: Tensor, values: Tensor) -> None:
    """values [m] at positions [m] in the concatenation of the weights, in place."""
    pairs = torch.from_numpy(split(positions.cpu().numpy(), sizes(model, list(names))))
    for i in pairs[:, 0].unique().tolist():
        at = pairs[:, 0] == i
        weights.write(model, names[i], pairs[at, 1].to(values.device), values[at.to(values.device)])


@dataclass(frozen=True)
class Held:
    """Weights that keep their values, by layer: name -> (positions [m], values [m] to hold, what else is known)."""

    layers: dict[str, tuple[Tensor, Tensor, Any]]

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Put the values back: against gradient, weight decay and momentum alike."""
        for name, (where, values, _) in self.layers.items():
            weights.write(model, name, where, values)


@torch.no_grad()
def unread(model: nn.Module, names: tuple[str, ...], positions: Tensor) -> dict[str, Tensor]:
    """The weights with 0 at the positions in their concatenation."""
    found, kept = {}, flat(model, names)
    kept[positions.to(kept.device).reshape(-1)] = 0
    for name in names:
        shape = weights.read(model, name).shape
        found[name], kept = kept[: shape.numel()].view(shape), kept[shape.numel() :]
    return found
