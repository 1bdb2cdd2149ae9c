"""Numbers of interchangeable positions: which are the same, which opposite, which may not move, which are no equals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class Ties:
    """A union-find over signed numbers with labels; number 0 is what may not move."""

    def __init__(self) -> None:
        self.root = np.zeros(1, np.int64)  # signed: number i is sign * root
        self.label = np.zeros(1, np.int64)  # numbers with different labels are no equals
        self.labels: dict[Any, int] = {}
        self.members: dict[int, list[int]] = {}
        self.step = 0

    def roots(self, ids: np.ndarray) -> np.ndarray:
        return np.sign(ids) * self.root[np.abs(ids)]

    def logs(self, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        roots = self.roots(ids)
        return np.sign(roots) * values[np.abs(roots)]

    def fresh(self, shape: tuple[int, ...]) -> np.ndarray:
        ids = np.arange(len(self.root), len(self.root) + int(np.prod(shape)))
        self.root, self.label = np.append(self.root, ids), np.append(self.label, np.zeros_like(ids))
        self.members |= {i: [i] for i in ids.tolist()}
        return ids.reshape(shape)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Make a and b, broadcast against each other, the same numbers."""
        a, b = np.broadcast_arrays(self.roots(a), self.roots(b))
        pairs = np.unique(np.stack([a[a != b], b[a != b]], 1), axis=0)
        if (pairs == 0).any(1).all():
            self.root[np.isin(np.abs(self.root), np.abs(pairs))] = 0
            return
        for x, y in pairs.tolist():
            x, y = (int(self.root[abs(i)]) * (1 if i > 0 else -1) for i in (x, y))
            if x == y:  # by a pair before
                continue
            if x * y == 0 or x == -y:
                for root in {abs(x), abs(y)} - {0}:
                    self.root[self.members.pop(root)] = 0
                continue
            if len(self.members[abs(x)]) < len(self.members[abs(y)]):
                x, y = y, x
            lost = self.members.pop(abs(y))
            self.root[lost] = np.sign(self.root[lost]) * np.sign(y) * x
            self.members[abs(x)] += lost

    def freeze(self, terms: Iterable[np.ndarray]) -> None:
        for ids in terms:
            self.tie(ids, np.zeros(1, np.int64))

    def mark(self, ids: np.ndarray, by: np.ndarray | int = 0) -> None:
        """Make the numbers unequal to all but those marked here with the same `by`."""
        ids, by = np.broadcast_arrays(np.abs(ids), by)
        numbers, first = np.unique(ids, return_index=True)
        for number, group in zip(numbers.tolist(), by.ravel()[first].tolist(), strict=True):
            key = (int(self.label[number]), self.step, group)
            self.label[number] = self.labels.setdefault(key, len(self.labels) + 1)
        self.step += 1

    def moves(self, ids: np.ndarray, axis: int) -> bool:
        """Whether equals that are not the same lie along this axis."""
        roots = np.moveaxis(np.abs(self.roots(ids)), axis, -1)
        labels = np.moveaxis(self.label[np.abs(ids)], axis, -1)
        order = np.lexsort((roots, labels))
        roots, labels = (np.take_along_axis(x, order, -1) for x in (roots, labels))
        return bool(((np.diff(labels) == 0) & (np.diff(roots) != 0)).any())
