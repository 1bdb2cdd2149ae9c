"""Units added to a network that change no output: neural structural obfuscation, on whatever can be widened.

Which channels move together is read off one forward pass (bench/models/symmetry.py). A family that lies side by side
along an axis of each of its tensors is widened as a whole: hidden units, squeezed ones, branches of a concatenation,
residual streams with all their writers and readers. Layers' sizes follow; names of parameters stay.

Left alone: inputs and logits, heads of attention (their number and width are written in the forward pass), grouped
convolutions but for depthwise ones, channels that are split. Streams under layer or group normalisation are tried and
undone, because more units have another mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.models.symmetry import Trace, extent

KINDS = ("zero", "clique", "split")
FAILURES = (RuntimeError, ValueError, AssertionError, IndexError)  # of a forward pass that has sizes written in it


@dataclass(frozen=True)
class Place:
    """Where a family's units lie along an axis of a tensor: positions [units, per unit], side by side."""

    name: str
    axis: int
    at: np.ndarray


Family = tuple[Place, ...]


@dataclass(frozen=True)
class Growth:
    """What is added to a family of n units. source [n + m]: the old unit that each is modelled on, old ones first;
    share [n + m]: of its outgoing weights; drawn [n + m]: -1, or a number for those that share incoming weights drawn
    anew; cliques: units whose outgoing weights are drawn with sum 0; seed: of what is drawn in tensors."""

    source: np.ndarray
    share: np.ndarray
    drawn: np.ndarray
    cliques: list[np.ndarray]
    seed: int


Change = tuple[Place, Growth, int]  # and the number of the place in its family


def widen(
    model: nn.Module,
    example: Tensor,
    holds: Callable[[], bool],
    amount: float,
    kinds: list[str],
    group: int,
    rng: np.random.Generator,
) -> tuple[list[Family], list[Family]]:
    """Add at least `amount` times its units to every family of `model`, in place; families that grew, and the others.

    holds: whether the model computes what it should; a family after which it is false, or raises, is left as it was.
    kinds, group: see `grow`. example: an input. Evaluation mode, and no gradients, are the caller's.
    """
    found = families(model, example)
    grown = [grow(len(family[0].at), amount, kinds, group, rng) for family in found]
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    slots = _slots(model)
    held: list[int] = []

    def make(chosen: list[int]) -> None:
        changes: dict[str, list[Change]] = defaultdict(list)
        for i in chosen:
            for number, place in enumerate(found[i]):
                changes[place.name].append((place, grown[i], number))
        for name, old in tensors.items():
            where = slots[id(old)]
            new = _enlarged(old, changes[name], where[0][0]) if name in changes else old
            for module, table, attribute in where:
                if table[attribute] is not new:
                    table[attribute] = new
                    _resize(module)

    def attempt(more: list[int]) -> None:
        """All at once, or else one half after the other."""
        make([*held, *more])
        try:
            good = holds()
        except FAILURES:
            good = False
        if good:
            held.extend(more)
        elif len(more) > 1:
            attempt(more[: len(more) // 2])
            attempt(more[len(more) // 2 :])

    attempt(list(range(len(found))))
    make(held)
    return [found[i] for i in held], [family for i, family in enumerate(found) if i not in held]


def families(model: nn.Module, example: Tensor) -> list[Family]:
    """What may be widened, as far as the rules know."""
    trace = Trace(model, "channels")
    trace.record(example)
    sets: dict[tuple, list[int]] = defaultdict(list)
    for root, (places, labels) in trace.channels().items():
        if labels == (0,):  # others are parts of an axis that was split
            sets[places].append(root)
    laid = [_laid(trace, places, roots) for places, roots in sets.items() if len(roots) > 1]
    return [family for family in laid if family]


def _laid(trace: Trace, places: tuple, roots: list[int]) -> Family:
    """Where the units lie; nothing where they do not lie side by side along one axis, each in one piece."""
    found: list[Place] = []
    number = np.full(len(trace.root), -1)
    for (name, term), count in places:
        ids = trace.roots(trace.declared[name][term])
        axes, line = extent(ids), ids.ravel()
        spots = np.flatnonzero(np.isin(line, roots))
        if not found:  # the first place says which unit is which
            number[line[spots[::count]]] = np.arange(len(roots))
        at = spots.reshape(-1, count)
        units = number[line[at]]
        if len(axes) > 1 or len(spots) != spots[-1] - spots[0] + 1 or (units != np.arange(len(roots))[:, None]).any():
            return ()
        found.append(Place(name, max(axes), at))
    return tuple(found)


def grow(n: int, amount: float, kinds: list[str], group: int, rng: np.random.Generator) -> Growth:
    """What to add to n units, at least amount * n, of all kinds in turn:

    `zero`, a unit whose outgoing weights are 0; `clique`, `group` units with the same incoming weights and outgoing
    ones whose sum is 0; `split`, a unit made `group` copies, each with its share of the outgoing weights. Incoming
    weights that are drawn are those of some unit in another order, so that their norm tells nothing; biases and
    normalisation are that unit's.
    """
    target = math.ceil(amount * n - 1e-9)
    source, share, drawn = list(range(n)), [1.0] * n, [-1] * n
    cliques: list[np.ndarray] = []
    added = dict.fromkeys(kinds, 0)
    order, splits = rng.permutation(n).tolist(), 0
    while (left := n + target - len(source)) > 0:
        kind = min(kinds, key=lambda kind: added[kind])
        if kind == "split":
            unit, count = order[splits % n], min(group - 1, left)
            parts = rng.uniform(0.5, 1.5, count + 1)
            parts *= share[unit] / parts.sum()
            share[unit] = parts[0]
            share += parts[1:].tolist()
            drawn += [-1] * count
            splits += 1
        else:
            unit, count = int(rng.integers(n)), 1 if kind == "zero" else max(2, min(group, left))
            if kind == "clique":
                cliques.append(np.arange(len(source), len(source) + count))
            share += [0.0] * count
            drawn += [max(drawn) + 1] * count
        source += [unit] * count
        added[kind] += count
    seed = int(rng.integers(2**62))
    return Growth(np.array(source), np.array(share), np.array(drawn), cliques, seed)


def _enlarged(old: Tensor, changes: list[Change], module: nn.Module) -> Tensor:
    """A tensor of `module` with what is added along its axes. Rows last: those that are the same are so in all of their
    columns, new ones too."""
    new = old.detach()
    for axis in sorted({place.axis for place, _, _ in changes}, reverse=True):
        new = _along(new, axis, [change for change in changes if change[0].axis == axis], module)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _along(old: Tensor, axis: int, changes: list[Change], module: nn.Module) -> Tensor:
    parts, begin, moved = [], 0, 0
    placed = []
    for place, growth, number in sorted(changes, key=lambda change: change[0].at[0, 0]):
        units, per = place.at.shape
        end, more = place.at[-1, -1] + 1, len(growth.source) - units
        parts += [np.arange(begin, end), place.at[growth.source[units:]].ravel()]
        fresh = np.arange(end + moved, end + moved + more * per).reshape(more, per)
        placed.append((np.concatenate([place.at + moved, fresh]), growth, np.random.default_rng([growth.seed, number])))
        begin, moved = end, moved + more * per
    parts.append(np.arange(begin, old.shape[axis]))
    new = old.index_select(axis, _index(np.concatenate(parts), old))
    layer = isinstance(module, (nn.Linear, nn.Conv2d)) and old.dim() > 1
    for at, growth, draws in placed if layer else []:
        if axis == 1:
            _send(new, at, growth, draws)
        elif axis == 0:
            _receive(new, at, growth, draws)
    return new


def _send(weight: Tensor, at: np.ndarray, growth: Growth, draws: np.random.Generator) -> None:
    """Outgoing weights, the columns at [units, per unit]: the shares of old ones, and those of cliques."""
    spread = float(weight.std())
    factors = np.ones(weight.shape[1])
    factors[at] = growth.share[:, None]
    weight.mul_(torch.from_numpy(factors).to(weight).view(1, -1, *[1] * (weight.dim() - 2)))
    for clique in growth.cliques:
        shape = (len(weight), *at[clique].shape, *weight.shape[2:])
        values = spread * draws.standard_normal(shape)
        values -= values.mean(1, keepdims=True)
        weight[:, _index(at[clique].ravel(), weight)] = torch.from_numpy(values).to(weight).flatten(1, 2)


def _receive(weight: Tensor, at: np.ndarray, growth: Growth, draws: np.random.Generator) -> None:
    """Incoming weights, the rows at [units, per unit]: those that are drawn anew, in a clique the same."""
    for number in range(growth.drawn.max() + 1):
        rows = _index(at[growth.drawn == number].ravel(), weight)
        order = _index(draws.permutation(weight[0].numel()), weight)
        weight[rows] = weight[rows].flatten(1)[:, order].view(-1, *weight.shape[1:])


def _index(positions: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(positions).to(like.device)


def _slots(model: nn.Module) -> dict[int, list[tuple[nn.Module, dict, str]]]:
    """Where each tensor is kept; one that is tied, in several places."""
    found = defaultdict(list)
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                found[id(tensor)].append((module, table, name))
    return found


def _resize(module: nn.Module) -> None:
    """Make the sizes that a layer notes for itself those of its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels == module.out_channels:  # depthwise
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        kept = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(kept)
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        size = tuple(module.weight.shape)
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = size
        else:
            module.num_channels = size[0]
