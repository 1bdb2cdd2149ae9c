"""Channels of a network permuted and rescaled: other weights, the same function.

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

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from bench.models import exchange
from bench.models.symmetry import Trace
from bench.types import Task

TOLERANCE = 1e-4
CHECKED = 8  # images

Edit = tuple[tuple[str, ...], Callable[[], None]]  # names of the tensors that it changes, and how


def noise(task: Task, rng: np.random.Generator) -> Tensor:
    """Random pixels in the shape of what a task's networks take: all that an attacker without data can ask with."""
    example = task.example(CHECKED)
    pixels = torch.from_numpy(rng.integers(0, 256, tuple(example.shape), dtype=np.uint8))
    return pixels.to(example.device, example.dtype)


def unchanged(model: nn.Module, images: Tensor) -> Callable[[], bool]:
    """A check: are the model's logits still, to 1e-4 of the largest, what they are now? False for what is no number."""
    reference = model(images)

    def holds() -> bool:
        difference = (model(images) - reference).abs().max()
        return bool(difference <= TOLERANCE * reference.abs().max())

    return holds


def disguise(model: nn.Module, images: Tensor, scale: float, rng: np.random.Generator) -> tuple[list[Edit], list[Edit]]:
    """Permute, and for scale > 1 rescale, `model` in place; the edits that held and those that were undone.

    images: what the logits are compared on.
    """
    with torch.no_grad(), exchange.evaluating(model):
        holds = unchanged(model, images)
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


def permutations(trace: Trace, rng: np.random.Generator) -> Iterator[Edit]:
    """One edit for each family of channels that live in the same tensors, exchanged at random among their equals."""
    for places, sets in exchange.families(trace).items():
        to = np.arange(len(trace.root))
        for roots in sets:
            to[roots] = rng.permutation(roots)
        if (to != np.arange(len(to))).any():
            yield tuple(name for name, _ in places), lambda places=places, to=to: exchange.permute(trace, places, to)


def rescalings(trace: Trace, scale: float, rng: np.random.Generator) -> Iterator[Edit]:
    """One edit for each family of factors that live in the same tensors."""
    for places, roots in exchange.factored(trace).items():
        logs = np.zeros(len(trace.root))
        logs[roots] = rng.uniform(-np.log(scale), np.log(scale), len(roots))
        names = {name for name, _ in places}
        names |= {var for mean, (var, _) in trace.statistics.items() if mean in names}
        yield tuple(sorted(names)), lambda places=places, logs=logs: exchange.rescale(trace, places, logs)
