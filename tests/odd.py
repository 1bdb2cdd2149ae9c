"""Nonsense by seed: run files in which one thing is another, bytes in which one bit is."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

OTHER = (None, "text", -1, 1e300, True, [], {}, [1], {"a": 1}, math.nan)


def nodes(value: Any, at: tuple = ()):
    """The places of a tree of dicts and lists, each the keys that lead there."""
    yield at
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from nodes(value[key], (*at, key))


def changed(made: dict, rng: np.random.Generator) -> dict:
    """A run file in which one thing is another: gone, of another type, beyond its range."""
    odd = copy.deepcopy(made)
    places = [at for at in nodes(odd) if at]
    *path, last = places[rng.integers(len(places))]
    node = odd
    for key in path:
        node = node[key]
    choice = int(rng.integers(len(OTHER) + 1))
    if choice == len(OTHER):
        del node[last]
    else:
        node[last] = copy.deepcopy(OTHER[choice])
    return odd


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """The same bytes but for one bit."""
    odd = bytearray(content)
    odd[rng.integers(len(odd))] ^= 1 << int(rng.integers(8))
    return bytes(odd)
