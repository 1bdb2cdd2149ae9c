"""A suspect that was widened: units that are copies of one become one, units that give nothing go.

Yan, Pan, Zhang, Yang (USENIX Security 2023) add units that change no output: without outgoing weights, in cliques
(incoming weights alike, outgoing ones of sum 0), or by splitting one into copies with a share each of its outgoing
weights. Here all that resemble one unit of the reference more than any other, by incoming weights, are one: what goes
out of them is summed, in units of the most alike. What is like none of them goes, but for as many as the reference has
units that nothing was like. Families must lie side by side along their axes, as those layers do.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bench.models import places, weights
from bench.models.places import Family, Place
from bench.models.reference import OtherShapes, Reference, State

ALIKE = 0.8  # cosine of incoming weights above which units are one
TWINS = 0.9999  # and of two of the suspect's that are like none of the reference's
NOTHING = 0.01  # share of outgoing energy that is none
KNOWN = 0.5  # of a family's units, how many must have been found for it to be the reference's


def widths(ref: Reference, held: dict[str, Tensor]) -> dict[int, int]:
    """Families that have another number of units in a suspect, and the number. Raises OtherShapes."""
    found: dict[int, int] = {}
    shared = {(p.name, p.axes): 0 for f in ref.families for p in f.places}
    for family in ref.families:
        for p in family.places:
            shared[p.name, p.axes] += 1
    for f, family in enumerate(ref.families):
        for i, p in enumerate(family.places):
            size, old = held[p.name].shape, ref.channels.tensors[p.name].shape
            if len(size) != len(old):
                raise OtherShapes(f"{p.name}: {tuple(size)}, not {tuple(old)}")
            axis = p.axes[0]
            covers = sum(at[i].size for at in family.at) == old[axis]
            if size[axis] == old[axis] or not covers or shared[p.name, p.axes] > 1:
                continue
            if len(family.roots) > 1 or len(p.axes) > 1 or size[axis] % family.at[0][i].shape[1]:
                raise OtherShapes(f"{p.name}: {tuple(size)}, not {tuple(old)}")
            count = size[axis] // family.at[0][i].shape[1]
            if found.setdefault(f, count) != count:
                raise OtherShapes(f"{p.name}: {count} units, not {found[f]}")
    for f in found:
        for i in range(len(ref.families[f].places)):
            _start(ref, found, f, i)
    return found


def _start(ref: Reference, wide: dict[int, int], f: int, i: int) -> int:
    """Where a family begins along the axis of a place, in a suspect whose families have their widths. OtherShapes."""
    place, at = ref.families[f].places[i], ref.families[f].at[0][i]
    n, c = at.shape
    if len(place.axes) > 1 or (at - at.min() != np.arange(n * c).reshape(n, c)).any():
        raise OtherShapes(f"{place.name}: other units, and the reference's do not lie side by side")
    first = int(at.min())
    for g, count in wide.items():
        other = ref.families[g]
        for j, p in enumerate(other.places):
            if g != f and (p.name, p.axes) == (place.name, place.axes) and other.at[0][j].min() < at.min():
                first += (count - len(other.roots[0])) * other.at[0][j].shape[1]
    return first


def incoming(ref: Reference, state: State, f: int) -> list[int]:
    """Places where incoming weights of a wide family show something now."""
    family, carriers = ref.families[f], weights.weights(ref.model)
    found = []
    for i, p in enumerate(family.places):
        size, old = state.held[p.name].shape, ref.channels.tensors[p.name].shape
        fits = all(a == b for axis, (a, b) in enumerate(zip(size, old, strict=True)) if axis not in p.axes)
        if ref.evidence[f][i] and fits and not _reads(carriers, p) and state.settled(ref, p, whole=False):
            found.append(i)
    return found


def _reads(carriers: dict[str, Tensor], place: Place) -> bool:
    return place.axes == (1,) and place.name in carriers


def collapse(ref: Reference, state: State, f: int) -> None:
    """Bring a wide family to the reference's units, in its order; the suspect's tensors follow. Raises OtherShapes."""
    family, m = ref.families[f], state.wide[f]
    n, carriers = len(family.roots[0]), weights.weights(ref.model)
    at = []
    for i in range(len(family.places)):
        c = family.at[0][i].shape[1]
        at.append(_start(ref, state.wide, f, i) + np.arange(m * c).reshape(m, c))
    cosine, theirs = _cosines(ref, state, f, at)
    group = np.where(cosine.max(1) > ALIKE, cosine.argmax(1), -1)
    if len(np.unique(group[group >= 0])) < KNOWN * n:
        raise OtherShapes(f"{family.places[0].name}: {m} units, not {n}, and few are like the reference's")
    head = np.arange(m)  # whom a unit is a copy of
    for b in np.unique(group[group >= 0]):
        members = np.flatnonzero(group == b)
        head[members] = members[cosine[members, b].argmax()]
    alone = np.flatnonzero(group < 0)
    twins = (theirs[alone] @ theirs[alone].T).abs().numpy() > TWINS
    head[alone] = alone[twins.argmax(1)] if len(alone) else head[alone]
    head[alone] = head[head[alone]]
    _same_signs(ref, state, family, at, head)
    gone = {i: _outgoing(ref, state, family, i, at, head) for i, p in enumerate(family.places) if _reads(carriers, p)}
    left = [a for a in np.unique(head[alone]) if _gives(gone, a, head)] if len(alone) else []
    free = np.setdiff1d(np.arange(n), group)
    if left and len(free):
        units, slots = linear_sum_assignment(cosine[np.ix_(left, free)], maximize=True)
        for u, s in zip(units, slots, strict=True):
            group[head == left[u]] = free[s]
    rep = np.full(n, -1)
    for a in np.flatnonzero(group >= 0):
        rep[group[a]] = head[a]
    order = sorted(range(len(family.places)), key=lambda i: i not in gone)  # before the other end of one tensor
    for i in order:
        p = family.places[i]
        state.held[p.name] = _narrowed(state.held[p.name], p.axes[0], at[i], rep, group, gone.get(i))
    state.merged += m - int((rep >= 0).sum())
    del state.wide[f]
    for name, tensor in state.held.items():
        if tensor.dim() > 1 and name not in state.seen and tensor.shape == ref.channels.tensors[name].shape:
            state.seen[name] = places.balanced(tensor, ref.axes.get(name, ()))


def _cosines(ref: Reference, state: State, f: int, at: list[np.ndarray]) -> tuple[np.ndarray, Tensor]:
    """[m, n] of the suspect's units with the reference's, and the suspect's [m, ..], of length 1."""
    family = ref.families[f]
    m, n = len(at[0]), len(family.roots[0])
    dot, ours, theirs, rows = torch.zeros(m, n), torch.zeros(n), torch.zeros(m, n), []
    for i in incoming(ref, state, f):
        p = family.places[i]
        a = places.units(places.balanced(state.held[p.name], ref.axes[p.name]), p.axes, at[i])
        b = places.units(ref.balanced[p.name], p.axes, family.at[0][i])
        if p.name in ref.means:
            a, b = _less_common(a, b)
        table = a @ b.T
        dot += table.abs() if ref.signless(p) else table
        theirs += a.square() @ (b != 0).float().T
        ours += b.square().sum(1)
        rows.append(a)
    whole = torch.cat(rows, 1)
    cosine = dot / (theirs * ours).sqrt().clamp_min(1e-12)
    return cosine.double().numpy(), torch.nn.functional.normalize(whole, dim=1)


def _less_common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Units [m, ..] and [n, ..] without the direction that those of `a` have most in common: where the mean over them
    is read, and marked, it is most of what a unit holds, and nothing of what the reference may show. Rows may have been
    scaled and their signs changed, so that their mean is not it."""
    with torch.no_grad():
        common = torch.linalg.svd(a.double(), full_matrices=False).Vh[0].to(a)
    return a - (a @ common)[:, None] * common, b - (b @ common)[:, None] * common


def _same_signs(ref: Reference, state: State, family: Family, at: list[np.ndarray], head: np.ndarray) -> None:
    """Copies get the sign, before a batch normalisation, of what they are copies of."""
    number = {(p.name, p.axes): i for i, p in enumerate(family.places)}
    for flips in ref.flips:
        spots = [(p, number[p.name, p.axes]) for p in flips.family.places if (p.name, p.axes) in number]
        rows = [(p, i) for p, i in spots if state.held[p.name].dim() > 1]
        if len(spots) < len(flips.family.places) or not rows:
            continue
        agree = torch.zeros(len(head))
        for p, i in rows:
            found = places.units(state.held[p.name].nan_to_num(0, 0, 0), p.axes, at[i])
            agree += (found * found[torch.from_numpy(head)]).sum(1)
        which = (agree < 0).numpy()
        for p, i in spots:
            places.negate(state.held[p.name], p.axes, at[i][which].ravel())
        for name, j in flips.gammas:
            mean = flips.family.places[j]
            places.negate(state.held[name], (0,), at[number[mean.name, mean.axes]][which].ravel())


def _outgoing(ref: Reference, state: State, family: Family, i: int, at: list[np.ndarray], head: np.ndarray) -> Tensor:
    """Outgoing weights [m, ..] at a place, times how much more a unit gives than what it is a copy of."""
    place = family.places[i]
    number = {(p.name, p.axes): j for j, p in enumerate(family.places)}
    sizes = []
    for scaled in ref.factors:
        spots = {(p.name, p.axes) for p in scaled.places}
        if (place.name, place.axes) in spots and not any(p.name.endswith("running_mean") for p in scaled.places):
            makers = [s for s in spots if s in number and s[1] == (0,)]
            sizes += [places.units(state.held[name], axes, at[number[name, axes]]) for name, axes in makers]
    out = places.units(state.held[place.name], place.axes, at[i])
    if not sizes:
        return out
    size = torch.cat(sizes, 1).nan_to_num(0, 0, 0)
    heads = size[torch.from_numpy(head)]
    norm = heads.square().sum(1)
    factor = torch.where(norm > 0, (size * heads).sum(1) / norm.clamp_min(1e-30), 1.0)
    return out * factor[:, None]


def _gives(gone: dict[int, Tensor], unit: int, head: np.ndarray) -> bool:
    """Whether a unit and its copies have anything that goes out."""
    copies = np.flatnonzero(head == unit)
    for out in gone.values():
        each = out.square().sum(1)
        if float(out[copies].sum(0).square().sum()) > NOTHING * max(float(each[copies].sum()), float(each.mean())):
            return True
    return False


def _narrowed(
    old: Tensor, axis: int, at: np.ndarray, rep: np.ndarray, group: np.ndarray, outgoing: Tensor | None
) -> Tensor:
    """A tensor with the reference's number of units along an axis: those of `rep`, or the sums of `outgoing`."""
    moved = old.movedim(axis, 0)
    m, c = at.shape
    first, rest = int(at.min()), moved.shape[1:]
    if outgoing is None:
        units = moved[first : first + m * c].reshape(m, c, *rest)[torch.from_numpy(rep.clip(0))]
        units[torch.from_numpy(rep < 0)] = 0
    else:
        kept = torch.from_numpy(np.flatnonzero(group >= 0))
        units = torch.zeros(len(rep), outgoing.shape[1]).index_add(0, torch.from_numpy(group)[kept], outgoing[kept])
        units = units.view(len(rep), c, *rest)
    new = torch.cat([moved[:first], units.reshape(-1, *rest), moved[first + m * c :]])
    return new.movedim(0, axis).contiguous()
