"""The network that suspects are aligned with, and what may be looked at of it (see models.align)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bench.models import exchange, places, weights
from bench.models.places import Family, Place
from bench.models.structure import Structure
from bench.models.symmetry import Trace

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
    show there. needs: of a place the families, and the flips, that have to be settled before it shows anything. shows:
    where the signs of each flip's rows show.
    """

    model: nn.Module
    channels: Structure
    blocks: Structure
    scale: Structure
    families: tuple[Family, ...]
    heads: tuple[Heads, ...]
    flips: tuple[Flips, ...]
    factors: tuple[Family, ...]
    axes: dict[str, tuple[int, ...]]
    unread: dict[str, Tensor]
    balanced: dict[str, Tensor]
    means: frozenset[str]
    evidence: tuple[tuple[float, ...], ...]
    needs: dict[tuple[str, tuple[int, ...]], tuple[frozenset[int], frozenset[int]]]
    shows: tuple[list[Place], ...]

    @property
    def bare(self) -> frozenset[int]:
        """Families without anything that may be looked at: they stay as they are."""
        return frozenset(f for f, counts in enumerate(self.evidence) if not any(counts))

    def signless(self, place: Place) -> bool:
        """Whether channels may have either sign there."""
        return any((place.name, place.axes) == (p.name, p.axes) for flips in self.flips for p in flips.family.places)


def hidden(method: object, model: nn.Module, key: object) -> dict[str, Tensor]:
    """What `prepared` may look at of the weights that carry a mark: the method's `unread`, or nothing of them."""
    found = method.unread(model, key)
    return {name: torch.zeros_like(weights.read(model, name)) for name in key.where} if found is None else found


MODES = ("channels", "blocks", "scale")


@dataclass(frozen=True)
class Traced:
    """What may be exchanged in a network: a structure for each of MODES, and which families of factors may have either
    sign, by number."""

    model: nn.Module
    structures: dict[str, Structure]
    flips: tuple[int, ...]


@torch.no_grad()
def traced(model: nn.Module, example: tuple[Any, ...], named: Mapping[str, Any] | None = None) -> Traced:
    """What may be exchanged in a network, by what it does with an example of its inputs."""
    model, named = copy.deepcopy(model).cpu().float().eval(), dict(named or {})
    structures: dict[str, Structure] = {}
    with exchange.evaluating(model):
        for mode in MODES:
            structures[mode] = trace = Trace(model, mode)
            trace.record(*(_one(x) for x in example), **{name: _one(x) for name, x in named.items()})
        example, named = tuple(map(_all, example)), {name: _all(x) for name, x in named.items()}
        return Traced(model, structures, tuple(_signless(structures["scale"], model, example, named)))


def _all(given: Any) -> Any:
    """An input on the CPU in float32."""
    if not isinstance(given, Tensor):
        return given
    return given.detach().cpu().float() if given.is_floating_point() else given.detach().cpu()


def _one(given: Any) -> Any:
    """The first of a batch."""
    given = _all(given)
    return given[:1] if isinstance(given, Tensor) and given.dim() else given


@torch.no_grad()
def prepared(model: nn.Module, unread: Mapping[str, Tensor], example: Tensor) -> Reference:
    """The reference that `model` makes. unread: of each weight that bits are read from the part that they are not
    computed from, 0 elsewhere (`hidden`); all other weights are looked at whole. example: inputs, as `Task.example`."""
    return referring(traced(model, (example.cpu(),)), unread)


@torch.no_grad()
def referring(found: Traced, unread: Mapping[str, Tensor]) -> Reference:
    """As `prepared`, by what was traced before."""
    model, traces = found.model, found.structures
    factors = places.families(traces["scale"])
    flips = tuple(_flips(traces["scale"], [factors[i] for i in found.flips]))
    channels = traces["channels"]
    # As they are stored: transformers' Conv1D the other way round.
    turned = {f"{name}.weight" for name, m in model.named_modules() if weights.conv1d(m)}
    first = {id(p): name for name, p in model.named_parameters()}
    tied = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    # By the name that the trace has of a tied weight, or it would be looked at whole under that.
    unread = {tied.get(name, name): t.t() if name in turned else t for name, t in unread.items()}
    families = tuple(f for f in places.families(channels) if any(len(roots) > 1 for roots in f.roots))
    own = {name: t.float() for name, t in channels.tensors.items() if t.dim() > 1}
    shown = own | {name: t.detach().cpu().float() for name, t in unread.items()}
    axes = places.moving(channels)
    evidence = tuple(tuple(_evidence(shown, f, i) for i in range(len(f.places))) for f in families)
    shows = tuple(_witnesses(flip, shown) for flip in flips)
    return Reference(
        model=model,
        channels=channels,
        blocks=traces["blocks"],
        scale=traces["scale"],
        families=families,
        heads=tuple(_heads(traces["blocks"], families)),
        flips=flips,
        factors=tuple(factors),
        axes=axes,
        unread=shown,
        balanced=places.like(shown, axes),
        means=frozenset(name for name in unread if _is_mean(own[name], shown[name])),
        evidence=evidence,
        needs=_needs(channels, families, shows),
        shows=shows,
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


def _flips(scale: Structure, factors: list[Family]) -> list[Flips]:
    """Families of factors as rows before batch normalisations; those that are none are left out."""
    found = []
    for family in factors:
        means = [(i, p.name) for i, p in enumerate(family.places) if p.name in scale.statistics]
        gammas = tuple((name.removesuffix("running_mean") + "weight", i) for i, name in means)
        if means and all(name in scale.tensors for name, _ in gammas):
            found.append(Flips(family, gammas))
    return found


def _signless(scale: Structure, model: nn.Module, example: tuple[Any, ...], named: Mapping[str, Any]) -> Iterator[int]:
    """The rows before batch normalisations whose sign the function does not depend on, by number of their family: each
    is tried."""
    draws = torch.Generator().manual_seed(0)

    def noise(given: Any) -> Any:
        if not isinstance(given, Tensor) or given.dtype in (torch.bool, torch.int64, torch.int32):
            return given  # tokens, masks: what they are
        if given.dtype == torch.uint8:
            return torch.randint(0, 256, tuple(given.shape), generator=draws).to(given.dtype)
        return torch.randn(given.shape, generator=draws).to(given.dtype)

    def outputs() -> list[Tensor]:
        return [x for x in tree_leaves(model(*inputs, **others)) if isinstance(x, Tensor) and x.is_floating_point()]

    inputs, others = [noise(x) for x in example], {name: noise(x) for name, x in named.items()}
    before = outputs()
    for number, family in enumerate(places.families(scale)):
        for flips in _flips(scale, [family]):
            for again in (False, True):  # there, and back: exact
                for k, roots in enumerate(family.roots):
                    flip(scale.tensors, flips, k, np.ones(len(roots), bool))
                if not again:
                    pairs = zip(outputs(), before, strict=True)
                    same = all(bool((x - y).abs().max() <= TOLERANCE * y.abs().max()) for x, y in pairs)
            if same:
                yield number


def flip(tensors: Mapping[str, Tensor], flips: Flips, k: int, which: np.ndarray) -> None:
    """Change the sign of some channels of set k, in place, wherever a tensor is at hand."""
    family = flips.family
    for i, place in enumerate(family.places):
        if place.name in tensors:
            places.negate(tensors[place.name], place.axes, family.at[k][i][which].ravel())
    for name, i in flips.gammas:
        if name in tensors:
            places.negate(tensors[name], (0,), family.at[k][i][which].ravel())


def _heads(blocks: Structure, families: tuple[Family, ...]) -> list[Heads]:
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
    channels: Structure, families: tuple[Family, ...], shows: tuple[list[Place], ...]
) -> dict[tuple[str, tuple[int, ...]], tuple[frozenset[int], frozenset[int]]]:
    """Of a tensor and axes: families and flips along its other axes, and the families along these (which a flip needs).

    Flips of rows of which nothing may be looked at are never settled, and nothing waits for them.
    """
    along: dict[str, list[tuple[tuple[int, ...], int]]] = {}
    for f, family in enumerate(families):
        for place in family.places:
            along.setdefault(place.name, []).append((place.axes, f))
    signs: dict[str, list[tuple[tuple[int, ...], int]]] = {}
    for g, found in enumerate(shows):
        for place in found:
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
    wide: dict[int, int] = field(default_factory=dict)  # families that have other numbers of units
    flipped: int = 0
    merged: int = 0
    changes: Counter[str] = field(default_factory=Counter)  # how often each of `seen` was
    looked: dict[tuple[str, int], tuple] = field(default_factory=dict)

    def touched(self, names: Iterable[str]) -> None:
        """Note that tensors were changed."""
        self.changes.update(names)

    def same(self, what: tuple[str, int], names: Sequence[str]) -> bool:
        """Whether something was looked at before by just these tensors as they are now: it would not be moved."""
        now = tuple((name, self.changes[name]) for name in names)
        before, self.looked[what] = self.looked.get(what), now
        return before == now

    def usable(self, ref: Reference, family: Family, f: int) -> list[int]:
        """Places of a family that show something now."""
        return [i for i, p in enumerate(family.places) if ref.evidence[f][i] and self.settled(ref, p)]

    def settled(self, ref: Reference, place: Place, whole: bool = True) -> bool:
        """Whether all along a tensor's other axes is in order (and, `whole`, along this one as wide as it should)."""
        others, signs = ref.needs.get((place.name, place.axes), (frozenset(), frozenset()))
        return (place.name in self.seen or not whole) and others <= self.families and signs <= self.flips
