"""What a trace found of a network (bench.models.symmetry), as plain data that may be kept in a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.models.unionfind import Ties


class Structure(Ties):
    """Which positions of which tensors move together.

    tensors: by name; declared: of each its terms, arrays of numbers that broadcast to its shape; statistics: running
    mean -> (running variance, eps); split: numbers along axes that were split. scale, blocks: what the numbers stand
    for (bench.models.symmetry).
    """

    def __init__(self, scale: bool, blocks: bool):
        super().__init__()
        self.scale, self.blocks = scale, blocks
        self.tensors: dict[str, Tensor] = {}
        self.declared: dict[str, list[np.ndarray]] = {}
        self.statistics: dict[str, tuple[str, float]] = {}
        self.split: list[int] = []

    def channels(self) -> dict[int, tuple[tuple, tuple]]:
        """Root -> where it occurs ((name, term), how often), and its labels."""
        places: dict[int, list] = defaultdict(list)
        labels: dict[int, set] = defaultdict(set)
        for name, terms in self.declared.items():
            for i, ids in enumerate(terms):
                live = np.abs(self.roots(ids))
                for root, count in zip(*np.unique(live[live > 0], return_counts=True), strict=True):
                    places[int(root)].append(((name, i), int(count)))
        for root, label in np.unique(np.stack([np.abs(self.root), self.label], 1), axis=0).tolist():
            labels[root].add(label)
        return {root: (tuple(found), tuple(sorted(labels[root]))) for root, found in places.items()}


def packed(found: Structure) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(arrays, what else there is as JSON has it): what `unpacked` makes a Structure of."""
    arrays = {"root": found.root, "label": found.label, "split": np.array(sorted(set(found.split)), np.int64)}
    terms: dict[str, list[list[int]]] = {}
    flat = [np.zeros(0, np.int64)]
    for name, parts in found.declared.items():
        terms[name] = [[int(n) for n in ids.shape] for ids in parts]
        flat += [ids.ravel() for ids in parts]
    arrays["ids"] = np.concatenate(flat)
    shapes = {name: list(t.shape) for name, t in found.tensors.items()}
    more = {"scale": found.scale, "blocks": found.blocks, "terms": terms, "shapes": shapes}
    more["statistics"] = {mean: list(rest) for mean, rest in found.statistics.items()}
    return {name: torch.from_numpy(x.astype(np.int32)) for name, x in arrays.items()}, more


def unpacked(arrays: Mapping[str, Tensor], more: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Structure:
    """A Structure over `tensors` of the names and shapes it was made with. Raises ValueError for data that are none, or
    that are another network's."""
    try:
        found = Structure(bool(more["scale"]), bool(more["blocks"]))
        root, label, split, ids = (arrays[n].numpy().astype(np.int64) for n in ("root", "label", "split", "ids"))
        if root.ndim != 1 or root.shape != label.shape or not len(root) or root[0] or ids.ndim != 1:
            raise ValueError("its numbers are no such thing")
        if max((np.abs(x).max(initial=0) for x in (root, split, ids)), default=0) >= len(root):
            raise ValueError("it names numbers that it does not have")
        found.root, found.label, found.split = root, label, split.tolist()
        at = 0
        for name, shapes in more["terms"].items():
            parts = []
            for shape in shapes:
                size = int(np.prod(shape))
                if size < 0 or at + size > len(ids):
                    raise ValueError(f"its terms of {name} are too short")
                parts.append(ids[at : at + size].reshape(shape))
                at += size
            found.declared[name] = parts
        for name, shape in more["shapes"].items():
            tensor = tensors[name]
            if list(tensor.shape) != list(shape):
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(shape)}")
            found.tensors[name] = tensor
        for name, parts in found.declared.items():
            for part in parts:
                np.broadcast_shapes(part.shape, tuple(found.tensors[name].shape))
        found.statistics = {str(m): (str(v), float(eps)) for m, (v, eps) in more["statistics"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return found
