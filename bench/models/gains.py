"""By which factors a suspect's channels differ from a reference's, fitted on what may be looked at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import lsqr
from torch import Tensor

from bench.models.structure import Structure
from bench.models.symmetry import extent

ROUNDS = 20  # of alternating least squares
LEAST = 1e-3  # logarithm of a factor below which nothing is scaled
VECTORS = 1e-2  # weight of an entry of a vector, as if 1e-4 of an entry of a matrix


def fitted(
    trace: Structure,
    suspect: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    unread: Mapping[str, Tensor],
    means: frozenset[str],
) -> np.ndarray:
    """Logarithms of factors by root of a trace in mode `scale`: suspect = reference times them. All 0 where none is
    more than 1e-3: whoever scaled nothing keeps every bit.

    Every tensor of two axes or more is fitted as reference times one gain for each position along its terms, on entries
    whose `unread` is not 0; a root is what its positions' gains agree on, weighted by how many entries say so and how
    well (sqrt(n) cos^2). Only products are seen there, so that all gains along one term may change against all along
    another: vectors say which, parameters only, since statistics are functions of weights that may be read.
    means: tensors of which a mean over the first axis is read, which is fitted as unknown.
    """
    rows: list[tuple[list[int], list[float], float]] = []  # columns, coefficients, right side; weighted
    unknowns = len(trace.root)
    for name, terms in trace.declared.items():
        if name not in suspect or not any(trace.roots(ids).any() for ids in terms):
            continue
        if suspect[name].dim() < 2:
            rows += _vector(trace, name, terms[0], suspect[name], reference[name]) if name in reference else []
            continue
        groups = _grouped(trace, terms, suspect[name].dim())
        gains, weights = _gains(suspect[name], unread[name], groups, name in means)
        first = unknowns
        unknowns += len(groups) - 1
        for i, (_, members) in enumerate(groups):
            gauge = range(first, unknowns) if i == 0 else [first + i - 1]
            for place in np.nonzero(weights[i] > 0)[0]:
                roots = [int(r) for r in members[place] if r]
                columns = [abs(r) for r in roots] + list(gauge)
                signs = [float(np.sign(r)) for r in roots] + [1.0 if i == 0 else -1.0] * len(gauge)
                w = float(weights[i][place])
                rows.append((columns, [w * s for s in signs], w * float(np.log(gains[i][place]))))
    if not rows:
        return np.zeros(len(trace.root))
    lengths = [len(columns) for columns, _, _ in rows]
    at = np.repeat(np.arange(len(rows)), lengths), np.concatenate([np.array(c, np.int64) for c, _, _ in rows])
    matrix = coo_matrix((np.concatenate([v for _, v, _ in rows]), at), (len(rows), unknowns)).tocsr()
    # Columns of equal length: without, a deep network takes thousands of steps.
    size = np.sqrt(np.asarray(matrix.multiply(matrix).sum(0)).ravel())
    size[size == 0] = 1.0
    right = np.array([b for _, _, b in rows])
    scaled = matrix.multiply(1 / size[None, :]).tocsr()
    logs = lsqr(scaled, right, atol=1e-13, btol=1e-13, iter_lim=4000)[0] / size
    logs = logs[: len(trace.root)]
    logs[0] = 0.0
    return logs if np.abs(logs).max() >= LEAST else np.zeros(len(trace.root))


def _grouped(trace: Structure, terms: list[np.ndarray], rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Terms by the axes they lie along: (index of the gain at each position [.. of the axes, 1 elsewhere], signed roots
    [gains, terms]). What lies along one axis (rows and columns of a depthwise convolution) shares gains."""
    by_axes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for ids in terms:
        by_axes.setdefault(tuple(sorted(extent(ids))), []).append(ids)
    found = []
    for together in by_axes.values():
        numbers = np.stack([ids.ravel() for ids in together], 1)
        _, first, index = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
        roots = np.stack([trace.roots(ids).ravel() for ids in together], 1)[first]
        found.append((index.reshape(together[0].shape), roots))
    return [group for group in found if group[1].any()]


def _gains(
    suspect: Tensor, unread: Tensor, groups: list[tuple[np.ndarray, np.ndarray]], mean: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(gains, weights) of each group: suspect = unread (plus, if a mean of it is read, an unknown one) times gains."""
    axes = sorted(set().union(*(extent(index) for index, _ in groups)))
    others = [a for a in range(suspect.dim()) if a not in axes]
    # What was pruned, or is no number, says nothing of a factor.
    shown = (unread != 0) & suspect.isfinite() & (suspect != 0)
    s, u = torch.where(shown, suspect, 0).double(), torch.where(shown, unread, 0).double()

    def summed(x: Tensor) -> np.ndarray:
        return (x.sum(others, keepdim=True) if others else x).numpy()

    power, count = summed(s * s), summed(shown.double())
    index = [np.broadcast_to(i, power.shape).ravel() for i, _ in groups]
    gains = [np.ones(len(roots)) for _, roots in groups]

    def product(without: int | None = None) -> np.ndarray:
        found = np.ones(power.size)
        for j, g in enumerate(gains):
            found = found * g[index[j]] if j != without else found
        return found

    def total(i: int, values: np.ndarray) -> np.ndarray:
        return np.bincount(index[i], values, len(gains[i]))

    cross, own = summed(s * u).ravel(), summed(u * u).ravel()
    for step in range(ROUNDS):
        before = product()
        if mean and step:
            table = s.new_tensor(product()).view(power.shape)
            inverse = (1 / table).nan_to_num(0, 0, 0)
            rest = (s * inverse - u).sum(0, keepdim=True) / shown.sum(0, keepdim=True).clamp_min(1)
            target = (u + rest) * shown
            cross, own = summed(s * target).ravel(), summed(target * target).ravel()
        for i in range(len(gains)):
            rest = product(i)
            top, bottom = total(i, cross * rest), total(i, own * rest * rest)
            gains[i] = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        for i in range(1, len(gains)):  # what all gains of a group have in common is the first's
            some = np.abs(gains[i])[gains[i] != 0]
            common = float(np.exp(np.log(some).mean())) if some.size else 1.0
            gains[i], gains[0] = gains[i] / common, gains[0] * common
        if step and np.abs(product() - before).max() <= 1e-14 * np.abs(before).max():
            break
    weights = []
    for i in range(len(gains)):
        rest = product(i)
        dot, norm = total(i, cross * rest), total(i, own * rest * rest) * total(i, power.ravel())
        cosine = np.divide(dot, np.sqrt(norm), out=np.zeros_like(dot), where=norm > 0)
        weights.append(np.sqrt(total(i, count.ravel())) * cosine.clip(0) ** 2 * (gains[i] > 0))
    return gains, weights


def _vector(
    trace: Structure, name: str, ids: np.ndarray, suspect: Tensor, reference: Tensor
) -> list[tuple[list[int], list[float], float]]:
    """One equation for each entry of a vector that has kept its sign, the larger ones first, none with much weight."""
    roots = trace.roots(ids).ravel()
    s, r = suspect.double().numpy().ravel(), reference.double().numpy().ravel()
    ok = (roots != 0) & (s * r > 0) & np.isfinite(s) & np.isfinite(r)
    found = []
    for root, a, b in zip(roots[ok].tolist(), s[ok], r[ok], strict=True):
        w = VECTORS * abs(b) / np.abs(r[ok]).max()
        found.append(([abs(root)], [w * float(np.sign(root))], float(w * np.log(a / b))))
    return found
