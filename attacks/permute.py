"""Permutation and rescaling of channels: other weights, the same function.

What may be exchanged is read off one forward pass, operation by operation (bench/models/symmetry.py), in three passes:
- `blocks`: where an axis is split (heads x dimensions), whole blocks move: attention heads;
- `channels`: there, only within a block: the dimensions of each head, of q with k and of v with proj. All else as well:
  hidden units, residual streams (embeddings, class tokens, position codes), branches of a concatenation;
- `scale`: rows before a batch normalisation (its statistics follow), its affine pair or a layer's rows through ReLU and
  linear operations to the next layer's columns, q against k, v against proj. Other nonlinearities and layer
  normalisation let no factor pass.
Exact by the rules, and every change is checked on the logits all the same.

Not moved: channels of inputs and logits; across groups of a grouped convolution (within a group they are); the hidden
units of transposed or recurrent layers. Heads of torch's own MultiheadAttention keep their places, their dimensions do
not.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import within
from bench.models.symmetry import Trace, extent
from bench.types import Attack, Fit, Snapshot, Victim

TOLERANCE = 1e-4
CHECKED = 8  # images


@dataclass(frozen=True)
class Permute(Attack):
    """Every interchangeable set of channels in a random order; outputs equal to float error, so damage is 0.

    scales: 1 permutes only; with s > 1 each channel is also scaled by a factor, log-uniform in [1/s, s], wherever
    that preserves the function exactly. What changes the logits by more than 1e-4 of the largest is undone.
    """

    scales: list[float] = within(1.0, 1e3)

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        example = victim.task.example(CHECKED)
        pixels = torch.from_numpy(rng.integers(0, 256, tuple(example.shape), dtype=np.uint8))
        images = pixels.to(example.device, example.dtype)
        for scale in self.scales:
            model = copy.deepcopy(victim.model)
            done, undone = disguise(model, images, scale, rng)
            why = "" if done else f"no channels of this network could be exchanged ({len(undone)} sets tried)"
            yield Snapshot("scale", scale, model, skipped=why)


Edit = tuple[tuple[str, ...], Callable[[], None]]  # names of the tensors that it changes, and how


def disguise(model: nn.Module, images: Tensor, scale: float, rng: np.random.Generator) -> tuple[list[Edit], list[Edit]]:
    """Permute, and for scale > 1 rescale, `model` in place; the edits that held and those that were undone.

    images: what the logits are compared on.
    """
    with torch.no_grad(), _evaluating(model):
        reference = model(images)

        def holds() -> bool:
            difference = (model(images) - reference).abs().max()
            return bool(difference <= TOLERANCE * reference.abs().max())  # false for what is no number

        done: list[Edit] = []
        tried: list[Edit] = []
        for mode in ("blocks", "channels", "scale"):
            if mode == "scale" and scale == 1:
                continue
            trace = Trace(model, mode)
            trace.record(images[:1])
            edits = list(rescalings(trace, scale, rng) if mode == "scale" else permutations(trace, rng))
            tried += edits
            done += _attempt(trace.tensors, edits, holds)
    return done, [edit for edit in tried if not any(edit is other for other in done)]


def _attempt(tensors: dict[str, Tensor], edits: list[Edit], holds: Callable[[], bool]) -> list[Edit]:
    """Make the edits, undoing those after which `holds()` is false: all at once, or else one half after the other."""
    if not edits:
        return []
    saved = {name: tensors[name].clone() for names, _ in edits for name in names}
    for _, make in edits:
        make()
    if holds():
        return edits
    for name, old in saved.items():
        tensors[name].copy_(old)
    half = len(edits) // 2
    return _attempt(tensors, edits[:half], holds) + _attempt(tensors, edits[half:], holds) if half else []


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, full float32 and torch's decomposable attention; everything back as it was afterwards."""
    training, fast = {m: m.training for m in model.modules()}, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in training.items():
            module.training = mode


def permutations(trace: Trace, rng: np.random.Generator) -> Iterator[Edit]:
    """One edit for each family of channels that live in the same tensors, exchanged at random among their equals."""
    families: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    wanted = set(trace.root[trace.split].tolist())
    for root, (places, labels) in trace.channels().items():
        if root in wanted or not trace.blocks:  # the others are what the next pass finds
            families[tuple(place for place, _ in places)][places, labels].append(root)
    for places, sets in families.items():
        to = np.arange(len(trace.root))
        for roots in sets.values():
            to[roots] = rng.permutation(roots)
        if (to != np.arange(len(to))).any():
            yield tuple(name for name, _ in places), lambda places=places, to=to: _permute(trace, places, to)


def _permute(trace: Trace, places: Iterable[tuple[str, int]], to: np.ndarray) -> None:
    """Put channel to[c] where channel c was. One that has several positions keeps their order."""
    for name, term in places:
        tensor, old = trace.tensors[name], trace.roots(trace.declared[name][term])
        axis = max(extent(old))
        index = np.empty(old.shape, np.int64)
        now, then = (np.argsort(x, axis, kind="stable") for x in (to[old], old))
        np.put_along_axis(index, now, then, axis)
        moved = torch.from_numpy(index).to(tensor.device)
        if moved.numel() == moved.shape[axis]:
            tensor.copy_(tensor.index_select(axis, moved.ravel()))
        else:  # an order of its own for each group of rows
            tensor.copy_(tensor.take_along_dim(moved.expand_as(tensor), axis))


def rescalings(trace: Trace, scale: float, rng: np.random.Generator) -> Iterator[Edit]:
    """One edit for each family of factors that live in the same tensors."""
    families: dict[Any, list[int]] = defaultdict(list)
    for root, (places, _) in trace.channels().items():
        families[tuple(place for place, _ in places)].append(root)
    for places, roots in families.items():
        logs = np.zeros(len(trace.root))
        logs[roots] = rng.uniform(-np.log(scale), np.log(scale), len(roots))
        names = {name for name, _ in places}
        names |= {var for mean, (var, _) in trace.statistics.items() if mean in names}
        yield tuple(sorted(names)), lambda places=places, logs=logs: _rescale(trace, places, logs)


def _rescale(trace: Trace, places: Iterable[tuple[str, int]], logs: np.ndarray) -> None:
    """Multiply what carries a factor; a batch normalisation of rows scaled by a gets variance a^2 (var + eps) - eps.

    Where that is negative the row keeps its scale: no variance makes up for it.
    """
    names = {name for name, _ in places}
    found = [(mean, *rest) for mean, rest in trace.statistics.items() if mean in names]
    pairs = [(trace.declared[mean][0], trace.tensors[var], eps) for mean, var, eps in found]

    def variance(ids: np.ndarray, var: Tensor, eps: float) -> np.ndarray:
        return np.exp(2 * trace.logs(ids, logs)) * (var.double().cpu().numpy() + eps) - eps

    for ids, var, eps in pairs:
        logs[np.abs(trace.roots(ids))[variance(ids, var, eps) < 0]] = 0.0
    for ids, var, eps in pairs:
        if trace.logs(ids, logs).any():
            var.copy_(torch.from_numpy(variance(ids, var, eps)))
    for name, term in places:
        factors = torch.from_numpy(np.exp(trace.logs(trace.declared[name][term], logs)))
        trace.tensors[name].mul_(factors.to(trace.tensors[name]))
