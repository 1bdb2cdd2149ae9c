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
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bench.models import exchange, gains, places, weights
from bench.models.places import Family, Place
from bench.models.symmetry import Trace

SWEEPS = 20  # with all evidence: a stranger's may not settle
BETTER = 1e-9  # relative: how much more similar an order must be than none
TOLERANCE = 1e-4  # of logits


class OtherShapes(Exception):
    """The suspect's tensors cannot be brought to the reference's shapes; says which."""


@dataclass(frozen=True)
class Heads:
    """Blocks that move whole. inside: families within them, and of each the sets that are in each block; direct: places
    without such a family, by number."""

    family: Family
    inside: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]
    direct: tuple[int, ...]


@dataclass(frozen=True)
class Flips:
    """Rows before a batch normalisation: what changes its sign with them. gammas: (name, place of its running mean)."""

    family: Family
    gammas: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Reference:
    """What suspects are aligned with; made once (`prepared`).

    unread: of every tensor of two axes or more what may be looked at; balanced: the same, balanced. means: tensors of
    which only a mean over the first axis is read. evidence: of each family and place how many numbers a channel has to
    show there. needs: of a place the families, and the flips, that have to be settled before it shows anything.
    """

    model: nn.Module
    channels: Trace
    blocks: Trace
    scale: Trace
    families: tuple[Family, ...]
    heads: tuple[Heads, ...]
    flips: tuple[Flips, ...]
    axes: dict[str, tuple[int, ...]]
    unread: dict[str, Tensor]
    balanced: dict[str, Tensor]
    means: frozenset[str]
    evidence: tuple[tuple[float, ...], ...]
    needs: dict[tuple[str, tuple[int, ...]], tuple[frozenset[int], frozenset[int]]]

    @property
    def bare(self) -> frozenset[int]:
        """Families without anything that may be looked at: they stay as they are."""
        return frozenset(f for f, counts in enumerate(self.evidence) if not any(counts))


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


def hidden(method: object, model: nn.Module, key: object) -> dict[str, Tensor]:
    """What `prepared` may look at of the weights that carry a mark: the method's `unread`, or nothing of them."""
    found = method.unread(model, key)
    return {name: torch.zeros_like(weights.read(model, name)) for name in key.where} if found is None else found


@torch.no_grad()
def prepared(model: nn.Module, unread: Mapping[str, Tensor], example: Tensor) -> Reference:
    """The reference that `model` makes. unread: of each weight that bits are read from the part that they are not
    computed from, 0 elsewhere (`hidden`); all other weights are looked at whole. example: inputs, as `Task.example`."""
    device = next(model.parameters()).device
    model = copy.deepcopy(model).cpu().eval()
    del device
    example = example.cpu()
    traces = {}
    with exchange.evaluating(model):
        for mode in ("channels", "blocks", "scale"):
            traces[mode] = Trace(model, mode)
            traces[mode].record(example[:1])
        flips = tuple(_flips(traces["scale"], model, example))
    channels = traces["channels"]
    families = tuple(f for f in places.families(channels) if any(len(roots) > 1 for roots in f.roots))
    own = {name: t.float() for name, t in channels.tensors.items() if t.dim() > 1}
    shown = own | {name: t.detach().cpu().float() for name, t in unread.items()}
    axes = places.moving(channels)
    evidence = tuple(tuple(_evidence(shown, f, i) for i in range(len(f.places))) for f in families)
    return Reference(
        model=model,
        channels=channels,
        blocks=traces["blocks"],
        scale=traces["scale"],
        families=families,
        heads=tuple(_heads(traces["blocks"], families)),
        flips=flips,
        axes=axes,
        unread=shown,
        balanced=places.like(shown, axes),
        means=frozenset(name for name in unread if _is_mean(own[name], shown[name])),
        evidence=evidence,
        needs=_needs(channels, families, flips, shown),
    )


def _evidence(shown: Mapping[str, Tensor], family: Family, i: int) -> float:
    place = family.places[i]
    if place.name not in shown:
        return 0.0
    sets = [places.units(shown[place.name], place.axes, at[i]) for at in family.at]
    return float(sum((u != 0).sum() for u in sets)) / sum(len(u) for u in sets)


def _is_mean(whole: Tensor, shown: Tensor) -> bool:
    """Whether what is not shown is the same in all rows."""
    rest = whole - shown
    return bool(rest.any()) and float((rest - rest[:1]).abs().max()) <= 1e-5 * float(whole.abs().max())


def _flips(scale: Trace, model: nn.Module, example: Tensor) -> list[Flips]:
    """The rows before batch normalisations whose sign the function does not depend on: each is tried."""
    found = []
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, tuple(example.shape), generator=draws).to(example.dtype)
    before = model(pixels)
    for family in places.families(scale):
        means = [(i, p.name) for i, p in enumerate(family.places) if p.name in scale.statistics]
        gammas = tuple((name.removesuffix("running_mean") + "weight", i) for i, name in means)
        if not means or not all(name in scale.tensors for name, _ in gammas):
            continue
        flips = Flips(family, gammas)
        for _ in range(2):  # there, and back: a sign's change is exact
            for k, roots in enumerate(family.roots):
                _flip(scale.tensors, flips, k, np.ones(len(roots), bool))
            if _ == 0:
                same = bool((model(pixels) - before).abs().max() <= TOLERANCE * before.abs().max())
        if same:
            found.append(flips)
    return found


def _flip(tensors: Mapping[str, Tensor], flips: Flips, k: int, which: np.ndarray) -> None:
    """Change the sign of some channels of set k, in place, wherever a tensor is at hand."""
    family = flips.family
    for i, place in enumerate(family.places):
        if place.name in tensors:
            places.negate(tensors[place.name], place.axes, family.at[k][i][which].ravel())
    for name, i in flips.gammas:
        if name in tensors:
            places.negate(tensors[name], (0,), family.at[k][i][which].ravel())


def _heads(blocks: Trace, families: tuple[Family, ...]) -> list[Heads]:
    found = []
    for family in places.families(blocks):
        if not any(len(roots) > 1 for roots in family.roots):
            continue
        at = {}  # tensor, axes, position -> head
        for i, place in enumerate(family.places):
            for k, roots in enumerate(family.roots):
                for n in range(len(roots)):
                    at |= {(place.name, place.axes, int(p)): (k, n) for p in family.at[k][i][n]}
        inside, covered = [], set()
        for f, inner in enumerate(families):
            first = inner.places[0]
            owners = [at.get((first.name, first.axes, int(sets[0][0, 0]))) for sets in inner.at]
            if None in owners:
                continue
            sizes = [len(roots) for roots in family.roots]
            lists = tuple(
                tuple(s for s, owner in enumerate(owners) if owner == (k, n))
                for k in range(len(sizes))
                for n in range(sizes[k])
            )
            inside.append((f, lists))
            covered |= {(place.name, place.axes) for place in inner.places}
        direct = tuple(i for i, p in enumerate(family.places) if (p.name, p.axes) not in covered)
        found.append(Heads(family, tuple(inside), direct))
    return found


def _needs(
    channels: Trace, families: tuple[Family, ...], flips: tuple[Flips, ...], shown: Mapping[str, Tensor]
) -> dict[tuple[str, tuple[int, ...]], tuple[frozenset[int], frozenset[int]]]:
    """Of a tensor and axes: families and flips along its other axes, and the families along these (which a flip needs).

    Flips of rows of which nothing may be looked at are never settled, and nothing waits for them.
    """
    along: dict[str, list[tuple[tuple[int, ...], int]]] = {}
    for f, family in enumerate(families):
        for place in family.places:
            along.setdefault(place.name, []).append((place.axes, f))
    signs: dict[str, list[tuple[tuple[int, ...], int]]] = {}
    for g, flip in enumerate(flips):
        for place in _witnesses(flip, shown):
            signs.setdefault(place.name, []).append((place.axes, g))
    found = {}
    every = {(name, axes) for table in (along, signs) for name, entries in table.items() for axes, _ in entries}
    for name, axes in every:
        others = frozenset(f for a, f in along.get(name, []) if a != axes)
        found[name, axes] = others, frozenset(g for a, g in signs.get(name, []) if a != axes)
    return found


def _witnesses(flips: Flips, shown: Mapping[str, Tensor]) -> list[Place]:
    """Where the sign of a row shows."""
    return [p for p in flips.family.places if p.name in shown and bool((shown[p.name] != 0).any())]


@dataclass
class State:
    """A suspect on its way: all its tensors, the balanced ones, what is settled, what was moved."""

    held: dict[str, Tensor]
    seen: dict[str, Tensor]
    families: set[int] = field(default_factory=set)
    heads: set[int] = field(default_factory=set)
    flips: set[int] = field(default_factory=set)
    moved: set[tuple[str, int]] = field(default_factory=set)
    flipped: int = 0

    def usable(self, ref: Reference, family: Family, f: int) -> list[int]:
        """Places of a family that show something now."""
        return [i for i, p in enumerate(family.places) if ref.evidence[f][i] and self.settled(ref, p)]

    def settled(self, ref: Reference, place: Place) -> bool:
        others, signs = ref.needs.get((place.name, place.axes), (frozenset(), frozenset()))
        return place.name in self.seen and others <= self.families and signs <= self.flips


@torch.no_grad()
def aligned(ref: Reference, suspect: nn.Module, example: Tensor | None = None) -> Aligned:
    """A suspect in the reference's order; the suspect itself is not touched. Raises OtherShapes."""
    held, merged = read(ref, suspect), 0
    state = State(held, places.like(comparable(ref, held), ref.axes))
    _first(ref, state)
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
        merged=merged,
        flipped=state.flipped,
        scaled=bool(logs.any()),
        score=_score(ref, state),
    )


def read(ref: Reference, suspect: nn.Module) -> dict[str, Tensor]:
    """Copies of the suspect's tensors, float32 on the CPU, by the reference's names. Raises OtherShapes."""
    state = suspect.state_dict()
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


def comparable(ref: Reference, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the reference's shapes. A head for other classes is none of them, and no obstacle; raises
    OtherShapes for another size along an axis that moves."""
    found = {}
    for name, tensor in held.items():
        shape = ref.channels.tensors[name].shape
        if tensor.shape == shape:
            found[name] = tensor
        elif tensor.dim() != len(shape) or any(tensor.shape[a] != shape[a] for a in ref.axes.get(name, ())):
            raise OtherShapes(f"{name}: {tuple(tensor.shape)}, not {tuple(shape)}")
    return found


def _first(ref: Reference, state: State) -> None:
    """Settle one family after the other, from inputs and outputs inwards: always the one with most to show."""
    inner = {f: h for h, heads in enumerate(ref.heads) for f, _ in heads.inside}
    left = set(range(len(ref.families))) - ref.bare
    _resolve(ref, state)
    while left:
        shows = {f: sum(ref.evidence[f][i] for i in state.usable(ref, ref.families[f], f)) for f in sorted(left)}
        best = max(shows, key=lambda f: shows[f])
        if not shows[best]:  # what hides behind a bare family is taken as it is
            state.families |= ref.bare or left
            if not any(state.usable(ref, ref.families[f], f) for f in left):
                state.families |= left
                state.flips |= set(range(len(ref.flips)))
                break
            continue
        if best in inner and inner[best] not in state.heads:
            _match_blocks(ref, state, inner[best])
        _match(ref, state, best)
        left.discard(best)
        state.families.add(best)
        _resolve(ref, state)
    state.families |= ref.bare
    _resolve(ref, state)
    state.flips |= set(range(len(ref.flips)))


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
        signless = any((place.name, place.axes) == (p.name, p.axes) for g in ref.flips for p in g.family.places)
        total += found.abs() if signless else found
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
    to = np.arange(len(ref.channels.root))
    for k, roots in enumerate(family.roots):
        if len(roots) > 1 and (order := _assign(_similarity(ref, state, f, k, k, usable).numpy())) is not None:
            to[roots] = roots[order]
    return _move(ref.channels, family, to, state, ("channels", f))


def _match_blocks(ref: Reference, state: State, h: int) -> bool:
    state.heads.add(h)
    heads, to, offset = ref.heads[h], np.arange(len(ref.blocks.root)), 0
    usable = {f: state.usable(ref, ref.families[f], f) for f, _ in heads.inside}
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


def _move(trace: Trace, family: Family, to: np.ndarray, state: State, label: tuple[str, int]) -> bool:
    if (to == np.arange(len(to))).all():
        return False
    exchange.permute(trace, family.terms, to, state.held)
    exchange.permute(trace, [t for t in family.terms if t[0] in state.seen], to, state.seen)
    state.moved.add(label)
    return True


def _resolve(ref: Reference, state: State, again: bool = False) -> bool:
    """Give rows before a batch normalisation the reference's signs, as soon as all that shows them is in order."""
    changed = False
    for g, flips in enumerate(ref.flips):
        if g in state.flips and not again:
            continue
        shows = _witnesses(flips, ref.unread)
        along = {f for f, x in enumerate(ref.families) for p in x.places for s in shows if p.name == s.name}
        waits = any(not state.settled(ref, p) for p in shows if p.name in state.seen)
        if not again and (waits or not along <= state.families):
            continue
        state.flips.add(g)
        for k, sets in enumerate(flips.family.at):
            total = torch.zeros(len(flips.family.roots[k]))
            for i, place in enumerate(flips.family.places):
                if place in shows and place.name in state.seen:
                    pair = (state.seen[place.name], ref.balanced[place.name])
                    theirs, ours = (places.units(t, place.axes, sets[i]) for t in pair)
                    total += (theirs * ours).sum(1)
            if bool((total < 0).any()):
                which = (total < 0).numpy()
                _flip(state.held, flips, k, which)
                _flip(state.seen, flips, k, which)
                state.flipped += int(which.sum())
                changed = True
    return changed


def _scaled(ref: Reference, state: State) -> list[tuple[str, int]]:
    shapes = {name: t.shape for name, t in ref.scale.tensors.items()}
    return [
        (name, i)
        for terms in exchange.factored(ref.scale)
        for name, i in terms
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
