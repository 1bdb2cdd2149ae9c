"""Where channels are in a network's tensors, for comparing those of two networks: a trace's families with positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.models import exchange
from bench.models.structure import Structure
from bench.models.symmetry import extent

ROUNDS = 8  # of balancing


@dataclass(frozen=True)
class Place:
    """A term of a tensor: channels lie along these axes (several: numbered together)."""

    name: str
    term: int
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """Channels that live in the same places, in sets of equals.

    roots: of each set its channels [n]; at: of each set and place their positions [n, c], numbered along its axes.
    """

    places: tuple[Place, ...]
    roots: tuple[np.ndarray, ...]
    at: tuple[tuple[np.ndarray, ...], ...]

    @property
    def terms(self) -> list[tuple[str, int]]:
        return [(place.name, place.term) for place in self.places]


def families(trace: Structure) -> list[Family]:
    """Every family of a trace, with positions."""
    found = []
    for terms, sets in exchange.families(trace).items():
        declared = [trace.declared[name][term] for name, term in terms]
        places = tuple(Place(*t, tuple(sorted(extent(ids)))) for t, ids in zip(terms, declared, strict=True))
        lives = [np.abs(trace.roots(ids)).ravel() for ids in declared]
        orders = [np.argsort(live, kind="stable") for live in lives]
        at = tuple(
            tuple(_positions(live, order, np.array(roots)) for live, order in zip(lives, orders, strict=True))
            for roots in sets
        )
        found.append(Family(places, tuple(np.array(roots) for roots in sets), at))
    return found


def _positions(live: np.ndarray, order: np.ndarray, roots: np.ndarray) -> np.ndarray:
    first = np.searchsorted(live[order], roots)
    count = int((live == roots[0]).sum())
    return order[first[:, None] + np.arange(count)]


def rows(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A tensor as [positions along the axes, all else]."""
    moved = tensor.movedim(axes, tuple(range(len(axes))))
    return moved.reshape(math.prod(moved.shape[: len(axes)]), -1)


def units(tensor: Tensor, axes: tuple[int, ...], at: np.ndarray) -> Tensor:
    """What each channel has in a tensor: [n, c x all else] for positions [n, c]."""
    found = rows(tensor, axes)
    if at.size == len(found) and (at.ravel() == np.arange(at.size)).all():
        return found.reshape(len(at), -1)  # all of them in order: no copy of the tensor
    return found[torch.from_numpy(at)].flatten(1)


def negate(tensor: Tensor, axes: tuple[int, ...], positions: np.ndarray) -> None:
    """Change the sign of positions along a tensor's axes, in place."""
    if len(axes) > 1:
        signs = torch.ones([tensor.shape[a] for a in axes])
        signs.view(-1)[torch.from_numpy(positions)] = -1
        shape = [n if a in axes else 1 for a, n in enumerate(tensor.shape)]
        tensor.mul_(signs.view(shape).to(tensor))
    else:
        index = torch.from_numpy(positions).to(tensor.device)
        tensor.index_copy_(axes[0], index, -tensor.index_select(axes[0], index))


def balanced(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A tensor times a positive factor for each slice along each of the axes, so that all slices' RMS is 1: 8 rounds
    of Sinkhorn's on the squares. What is no number counts as 0, slices of zeros stay."""
    tensor = tensor.float().nan_to_num(0, 0, 0)
    if not axes:
        size = tensor.square().mean().sqrt()
        return tensor / size if size > 0 else tensor
    others = [a for a in range(tensor.dim()) if a not in axes]
    squares = tensor.double().square()
    squares = squares.mean(others, keepdim=True) if others else squares
    factors = [torch.ones([n if b == a else 1 for b, n in enumerate(squares.shape)]).double() for a in axes]
    for _ in range(ROUNDS):
        for i, axis in enumerate(axes):
            size = squares
            for j, factor in enumerate(factors):
                size = size * factor.square() if j != i else size
            rest = [a for a in axes if a != axis]
            size = (size.mean(rest, keepdim=True) if rest else size).sqrt()
            factors[i] = torch.where(size > 0, 1 / size, 0.0)
    for factor in factors:
        tensor = tensor * factor.float()
    return tensor


def moving(trace: Structure) -> dict[str, tuple[int, ...]]:
    """The axes of every tensor along which something may be exchanged, each by itself."""
    found = {}
    for name, terms in trace.declared.items():
        alive = [sorted(extent(ids)) for ids in terms if trace.roots(ids).any()]
        found[name] = tuple(sorted({axes[0] for axes in alive if len(axes) == 1}))
    return found


def like(tensors: Mapping[str, Tensor], axes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The balanced tensors of two axes or more."""
    return {name: balanced(t, axes.get(name, ())) for name, t in tensors.items() if t.dim() > 1}
