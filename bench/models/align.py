"""Putting the channels of a suspect back where a reference has them, by weights that a watermark's reader does not see.

A network's channels may be exchanged and scaled without changing what it computes (attacks/permute.py), and readers go
by position. The owner keeps the marked network; what may be exchanged is read off its forward pass (models.symmetry),
and the suspect's channels are matched with its channels by all weights but those, or those parts of them, that bits are
computed from. So the order knows nothing of the message, and a stranger's bits stay coin tosses; the reference must be
committed with the key, for whoever may choose it afterwards reads what they like.

Neuron alignment: Li et al., Convergent learning (2015); Ainsworth et al., Git Re-Basin (2022). Ours: what is not
looked at, attention heads as blocks, signs of rows before a batch normalisation, factors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bench.models import exchange, gains, merge, places, weights
from bench.models.places import Family
from bench.models.reference import (
    OtherShapes,
    Reference,
    State,
    Traced,
    flip,
    hidden,
    prepared,
    referring,
    traced,
)
from bench.models.structure import Structure

__all__ = ["Aligned", "OtherShapes", "Reference", "Traced", "aligned", "hidden", "prepared", "referring", "traced"]

SWEEPS = 20  # with all evidence: a stranger's may not settle
BETTER = 1e-9  # relative: how much more similar an order must be than none


@dataclass(frozen=True)
class Aligned:
    """A suspect in the reference's order and scale, as a network of its own.

    moved: families (blocks of heads count as one) put in another order; flipped: rows whose sign was changed; scaled:
    whether factors were taken out; bare: families that nothing could be said about; merged: units that were one, or
    none; converged: whether the order settled. score: correlation of the weights that were looked at, a description.
    """

    model: nn.Module
    moved: int
    bare: int
    converged: bool
    merged: int
    flipped: int
    scaled: bool
    score: float


@torch.no_grad()
def aligned(ref: Reference, suspect: nn.Module) -> Aligned:
    """A suspect in the reference's order; the suspect itself is not touched. Raises OtherShapes."""
    held = read(ref, suspect)
    wide = merge.widths(ref, held)
    state = State(held, places.like(_comparable(ref, held, bool(wide)), ref.axes), wide=wide)
    _first(ref, state)
    _comparable(ref, state.held)
    converged = False
    for _ in range(SWEEPS):
        if not _sweep(ref, state):
            converged = True
            break
    shown = {name: t for name, t in state.held.items() if name in state.seen or t.dim() == 1}
    vectors = {name: t for name, t in ref.scale.tensors.items() if t.dim() == 1 and "running_" not in name}
    logs = gains.fitted(ref.scale, shown, vectors, ref.unread, ref.means)
    if logs.any():
        exchange.rescale(ref.scale, _scaled(ref, state), -logs, state.held)
    return Aligned(
        model=_built(ref, state, suspect),
        moved=len(state.moved),
        bare=len(ref.bare),
        converged=converged,
        merged=state.merged,
        flipped=state.flipped,
        scaled=bool(logs.any()),
        score=_score(ref, state),
    )


def read(ref: Reference, suspect: nn.Module) -> dict[str, Tensor]:
    """Copies of the suspect's tensors, float32 on the CPU, by the reference's names. Raises OtherShapes."""
    # What is stored in another order is read as a weight.
    turned = {f"{name}.weight" for name, m in suspect.named_modules() if weights.conv1d(m)}
    turned -= {f"{name}.weight" for name, m in ref.model.named_modules() if weights.conv1d(m)}
    state = {name: t for name, t in suspect.state_dict().items() if name not in turned}
    found = {}
    for name in ref.channels.tensors:
        try:
            tensor = state[name] if isinstance(state.get(name), Tensor) else weights.read(suspect, name)
        except AttributeError:
            if name.rpartition(".")[2] in dict(ref.model.named_buffers()) or name not in ref.model.state_dict():
                tensor = ref.channels.tensors[name]  # a table that is no weight
            else:
                raise OtherShapes(f"the suspect has no {name}") from None
        found[name] = tensor.detach().cpu().float().clone()
    return found


def _comparable(ref: Reference, held: Mapping[str, Tensor], more: bool = False) -> dict[str, Tensor]:
    """The tensors of the reference's shapes. A head for other classes is none of them, and no obstacle; raises
    OtherShapes for what has another shape otherwise, unless `more` units are still to be merged."""
    found = {}
    for name, tensor in held.items():
        shape = ref.channels.tensors[name].shape
        axes = [a for a, (n, m) in enumerate(zip(tensor.shape, shape, strict=False)) if n != m]
        if tensor.shape == shape:
            found[name] = tensor
        elif not more and (tensor.dim() != len(shape) or axes != [0] or 0 in ref.axes.get(name, ())):
            raise OtherShapes(f"{name}: {tuple(tensor.shape)}, not {tuple(shape)}")
    return found


def _first(ref: Reference, state: State) -> None:
    """Settle one family after the other, from inputs and outputs inwards: always the one with most to show."""
    inner = {f: h for h, heads in enumerate(ref.heads) for f, _ in heads.inside}
    left = set(range(len(ref.families))) - ref.bare
    _resolve(ref, state)
    while left:
        usable = {f: _usable(ref, state, f) for f in sorted(left)}
        shows = {f: sum(ref.evidence[f][i] for i in found) for f, found in usable.items()}
        best = max(shows, key=lambda f: shows[f])
        if not shows[best]:  # what hides behind a bare family is taken as it is
            state.families |= ref.bare or left
            if not any(_usable(ref, state, f) for f in left):
                state.families |= left
                state.flips |= set(range(len(ref.flips)))
                break
            continue
        if best in inner and inner[best] not in state.heads:
            _match_blocks(ref, state, inner[best])
        if best in state.wide:
            merge.collapse(ref, state, best)
            state.looked.clear()
        else:
            _match(ref, state, best)
        left.discard(best)
        state.families.add(best)
        _resolve(ref, state)
    state.families |= ref.bare
    _resolve(ref, state)
    state.flips |= set(range(len(ref.flips)))


def _usable(ref: Reference, state: State, f: int) -> list[int]:
    return merge.incoming(ref, state, f) if f in state.wide else state.usable(ref, ref.families[f], f)


def _sweep(ref: Reference, state: State) -> bool:
    """Match everything again by everything; whether anything changed."""
    changed = [_match_blocks(ref, state, h) for h in range(len(ref.heads))]
    changed += [_match(ref, state, f) for f in range(len(ref.families)) if f not in ref.bare]
    changed += [_resolve(ref, state, again=True)]
    return any(changed)


def _similarity(ref: Reference, state: State, f: int, x: int, y: int, usable: list[int]) -> Tensor:
    """[n, n] of the suspect's channels of set x by the reference's of set y."""
    family = ref.families[f]
    total = torch.zeros(len(family.roots[x]), len(family.roots[y]), dtype=torch.float64)
    for i in usable:
        place = family.places[i]
        ours = places.units(ref.balanced[place.name], place.axes, family.at[y][i])
        theirs = places.units(state.seen[place.name], place.axes, family.at[x][i])
        found = (theirs @ ours.T).double()
        total += found.abs() if ref.signless(place) else found
    return total


def _assign(similarity: np.ndarray) -> np.ndarray | None:
    """order [n]: the suspect's channel for each of the reference's; None where none is better than the present one."""
    theirs, ours = linear_sum_assignment(similarity, maximize=True)
    best, now = similarity[theirs, ours].sum(), np.trace(similarity)
    if best - now <= BETTER * abs(now):
        return None
    order = np.empty(len(ours), np.int64)
    order[ours] = theirs
    return order


def _match(ref: Reference, state: State, f: int) -> bool:
    family = ref.families[f]
    usable = state.usable(ref, family, f)
    if state.same(("channels", f), [family.places[i].name for i in usable]):
        return False
    to = np.arange(len(ref.channels.root))
    for k, roots in enumerate(family.roots):
        if len(roots) > 1 and (order := _assign(_similarity(ref, state, f, k, k, usable).numpy())) is not None:
            to[roots] = roots[order]
    return _move(ref.channels, family, to, state, ("channels", f))


def _match_blocks(ref: Reference, state: State, h: int) -> bool:
    state.heads.add(h)
    heads, to, offset = ref.heads[h], np.arange(len(ref.blocks.root)), 0
    usable = {f: state.usable(ref, ref.families[f], f) for f, _ in heads.inside}
    shows = [ref.families[f].places[i].name for f, found in usable.items() for i in found]
    shows += [p.name for p in map(heads.family.places.__getitem__, heads.direct) if state.settled(ref, p)]
    if state.same(("blocks", h), shows):
        return False
    for k, roots in enumerate(heads.family.roots):
        n = len(roots)
        score = np.zeros((n, n))
        for f, lists in heads.inside if n > 1 else ():
            for x in range(n):
                for y in range(n):
                    for a, b in zip(lists[offset + x], lists[offset + y], strict=True):
                        table = _similarity(ref, state, f, a, b, usable[f]).numpy()
                        score[x, y] += table[linear_sum_assignment(table, maximize=True)].sum()
        for i in heads.direct if n > 1 else ():
            place = heads.family.places[i]
            if place.name in state.seen and state.settled(ref, place):
                pair = (state.seen[place.name], ref.balanced[place.name])
                theirs, ours = (places.units(t, place.axes, heads.family.at[k][i]) for t in pair)
                score += (theirs @ ours.T).double().numpy()
        if n > 1 and (order := _assign(score)) is not None:
            to[roots] = roots[order]
        offset += n
    return _move(ref.blocks, heads.family, to, state, ("blocks", h))


def _move(trace: Structure, family: Family, to: np.ndarray, state: State, label: tuple[str, int]) -> bool:
    if (to == np.arange(len(to))).all():
        return False
    exchange.permute(trace, family.terms, to, state.held)
    exchange.permute(trace, [t for t in family.terms if t[0] in state.seen], to, state.seen)
    state.touched(name for name, _ in family.terms)
    state.moved.add(label)
    return True


def _resolve(ref: Reference, state: State, again: bool = False) -> bool:
    """Give rows before a batch normalisation the reference's signs, as soon as all that shows them is in order."""
    changed = False
    for g, flips in enumerate(ref.flips):
        if g in state.flips and not again:
            continue
        shows = ref.shows[g]
        along = {f for f, x in enumerate(ref.families) for p in x.places for s in shows if p.name == s.name}
        waits = any(not state.settled(ref, p) for p in shows if p.name in state.seen)
        if not again and (waits or not along <= state.families):
            continue
        state.flips.add(g)
        if state.same(("flips", g), [p.name for p in shows]):
            continue
        for k, sets in enumerate(flips.family.at):
            total = torch.zeros(len(flips.family.roots[k]))
            for i, place in enumerate(flips.family.places):
                if place in shows and place.name in state.seen:
                    pair = (state.seen[place.name], ref.balanced[place.name])
                    theirs, ours = (places.units(t, place.axes, sets[i]) for t in pair)
                    total += (theirs * ours).sum(1)
            if bool((total < 0).any()):
                which = (total < 0).numpy()
                flip(state.held, flips, k, which)
                flip(state.seen, flips, k, which)
                state.touched(p.name for p in flips.family.places)
                state.flipped += int(which.sum())
                changed = True
    return changed


def _scaled(ref: Reference, state: State) -> list[tuple[str, int]]:
    shapes = {name: t.shape for name, t in ref.scale.tensors.items()}
    # Once each: a term may hold channels of several families.
    return [
        (name, i)
        for name, i in dict.fromkeys(place for terms in exchange.factored(ref.scale) for place in terms)
        if all(state.held[name].shape[a] == n for a, n in enumerate(ref.scale.declared[name][i].shape) if n > 1)
        or state.held[name].shape == shapes[name]
    ]


def _score(ref: Reference, state: State) -> float:
    dot, one, two = 0.0, 0.0, 0.0
    for name, theirs in state.seen.items():
        ours = ref.balanced[name]
        theirs = theirs * (ours != 0)
        dot += float((theirs * ours).sum(dtype=torch.float64))
        one += float(theirs.square().sum(dtype=torch.float64))
        two += float(ours.square().sum(dtype=torch.float64))
    return dot / (one * two) ** 0.5 if one and two else 0.0


def _built(ref: Reference, state: State, suspect: nn.Module) -> nn.Module:
    """A network of the reference's architecture with the suspect's tensors, on its device."""
    model = copy.deepcopy(ref.model)
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        if name not in state.held:
            value = suspect.state_dict().get(name)
            if isinstance(value, Tensor) and value.shape == own.shape:
                own.copy_(value)
        elif state.held[name].shape == own.shape:
            own.copy_(state.held[name])
        else:  # a head for other classes
            own.data = state.held[name]
    return model.to(next(iter(suspect.state_dict().values())).device)
