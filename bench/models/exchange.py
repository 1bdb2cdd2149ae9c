"""Exchanging and scaling the channels that a trace (bench.models.symmetry) found, and doing so again backwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.models.structure import Structure
from bench.models.symmetry import extent

Places = tuple[tuple[str, int], ...]  # (tensor, term) in which a family's channels occur


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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


def families(trace: Structure) -> dict[Places, list[list[int]]]:
    """Channels that live in the same tensors -> sets of roots that are each other's equals. Of whole blocks those
    alone that the other pass does not find."""
    found: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    wanted = set(trace.root[trace.split].tolist())
    for root, (places, labels) in trace.channels().items():
        if root in wanted or not trace.blocks:
            found[tuple(place for place, _ in places)][places, labels].append(root)
    return {places: list(sets.values()) for places, sets in found.items()}


def permute(
    trace: Structure, places: Iterable[tuple[str, int]], to: np.ndarray, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Put channel to[c] where channel c was, in place, in the traced tensors or in others of the same names and orders.
    A channel that has several positions keeps their order."""
    tensors = trace.tensors if tensors is None else tensors
    for name, term in places:
        tensor, old = tensors[name], trace.roots(trace.declared[name][term])
        axis = max(extent(old))
        index = np.empty(old.shape, np.int64)
        now, then = (np.argsort(x, axis, kind="stable") for x in (to[old], old))
        np.put_along_axis(index, now, then, axis)
        moved = torch.from_numpy(index).to(tensor.device)
        if moved.numel() == moved.shape[axis]:
            tensor.copy_(tensor.index_select(axis, moved.ravel()))
        else:  # an order of its own for each group of rows
            tensor.copy_(tensor.take_along_dim(moved.expand_as(tensor), axis))


def factored(trace: Structure) -> dict[Places, list[int]]:
    """Factors that live in the same tensors, by their roots."""
    found: dict[Any, list[int]] = defaultdict(list)
    for root, (places, _) in trace.channels().items():
        found[tuple(place for place, _ in places)].append(root)
    return dict(found)


def rescale(
    trace: Structure, places: Iterable[tuple[str, int]], logs: np.ndarray, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Multiply what carries a factor, in place; logs: by root, changed where a row keeps its scale.

    A batch normalisation of rows scaled by a gets variance a^2 (var + eps) - eps. Where that is negative the row keeps
    its scale: no variance makes up for it.
    """
    tensors = trace.tensors if tensors is None else tensors
    names = {name for name, _ in places}
    found = [(mean, *rest) for mean, rest in trace.statistics.items() if mean in names]
    pairs = [(trace.declared[mean][0], tensors[var], eps) for mean, var, eps in found]

    def variance(ids: np.ndarray, var: Tensor, eps: float) -> np.ndarray:
        return np.exp(2 * trace.logs(ids, logs)) * (var.double().cpu().numpy() + eps) - eps

    for ids, var, eps in pairs:
        logs[np.abs(trace.roots(ids))[variance(ids, var, eps) < 0]] = 0.0
    for ids, var, eps in pairs:
        if trace.logs(ids, logs).any():
            var.copy_(torch.from_numpy(variance(ids, var, eps)))
    for name, term in places:
        factors = torch.from_numpy(np.exp(trace.logs(trace.declared[name][term], logs)))
        tensors[name].mul_(factors.to(tensors[name]))
