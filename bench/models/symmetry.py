"""Which channels of a network are interchangeable, read off one forward pass, operation by operation.

Every position along an axis of a parameter gets a number; an operation that needs two positions to move together (a row
of a layer and the column of the next that reads it, both ends of a residual addition, a normalisation's statistics)
ties their numbers. What no rule covers may not move, nor may inputs and outputs. Positions tied together are one
channel, and channels that occur in the same places equally often are interchangeable.

Modes: `blocks`, where an axis is split, lets whole blocks of it move; `channels` only what is within a block; in
`scale` each number stands for a factor, and a product of two layers ties factors that cancel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.models.structure import Structure

# ATen operations by what they do to axes; in-place variants go by the same name.
SAME = {"_to_copy", "detach", "alias", "clone", "contiguous", "lift_fresh", "dropout", "relu", "neg", "leaky_relu"}
CURVED = {"_softmax", "_safe_softmax", "_log_softmax", "hardswish", "hardsigmoid", "_prelu_kernel", "native_dropout"}
SUMS, PRODUCTS = {"add", "sub", "rsub"}, {"mul", "div"}
RESHAPES = {"view", "_unsafe_view", "unsqueeze", "squeeze", "_reshape_alias"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "var_mean", "linalg_vector_norm", "norm"}
MIXING = {"roll": 2, "flip": 1, "_fft_r2c": 1, "_fft_c2c": 1}  # and where they say along which axes
SPATIAL = ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_", "upsample", "reflection_pad", "replication_pad")


def extent(ids: np.ndarray) -> set[int]:
    """The axes along which a tensor's terms differ."""
    return {axis for axis, size in enumerate(ids.shape) if size > 1}


class Trace(Structure, TorchDispatchMode):
    """Which positions of which parameters move together, from one forward pass.

    A tensor has terms: arrays of numbers, broadcastable to its shape, one for each axis (or several axes together)
    that moves. Number 0 is what may not move. With `scale` the tensor's logarithmic factor is the sum of its terms,
    and a number's sign is its exponent's; otherwise all are positive.
    """

    def __init__(self, model: nn.Module, mode: str):
        TorchDispatchMode.__init__(self)
        Structure.__init__(self, mode == "scale", mode == "blocks")
        self.model = model
        self.names: dict[int, str] = {}
        self.terms: dict[int, list[np.ndarray]] = {}
        self.alive: list[Tensor] = []  # an id may not be given twice, nor a storage
        self.bases: dict[int, Tensor] = {}
        self._declare()

    def record(self, *inputs: Any, **named: Any) -> None:
        """Follow one forward pass."""
        with self:
            out = self.model(*inputs, **named)
        for tensor in tree_leaves(out):
            self.freeze(self.get(tensor))
        for kept in (self.alive, self.bases, self.terms):
            kept.clear()

    # Tensors

    def _declare(self) -> None:
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        groups = {id(m.weight): m.groups for m in self.model.modules() if isinstance(m, kinds)}
        kept = self.model.state_dict().keys()
        buffers = [(n, b) for n, b in self.model.named_buffers() if n in kept or not b.any()]
        for name, tensor in [*self.model.named_parameters(), *buffers]:
            if not tensor.is_floating_point():
                continue
            self.tensors[name], self.names[id(tensor)], shape = tensor, name, tensor.shape
            if self.scale and name.endswith("running_var"):
                continue  # no product of factors, see _rescale
            one = (1,) * len(shape)
            terms = [self.fresh((*one[:axis], n, *one[axis + 1 :])) for axis, n in enumerate(shape)]
            if (g := groups.get(id(tensor), 1)) > 1:
                if shape[1] > 1:
                    self.mark(terms[0], np.arange(shape[0]).reshape(-1, *one[1:]) // (shape[0] // g))
                # Each group of rows has columns of its own; in a depthwise convolution that is another term of rows.
                columns = self.fresh((g, shape[1], *one[2:])).repeat(shape[0] // g, 0)
                terms[1:] = [columns] if self.scale or shape[1] > 1 else []
            self.declared[name] = self.terms[id(tensor)] = [ids for ids in terms if ids.size > 1]

    def get(self, tensor: Any) -> list[np.ndarray]:
        return self.terms.get(id(tensor), []) if isinstance(tensor, Tensor) else []

    def put(self, tensor: Tensor, terms: list[np.ndarray]) -> None:
        """Set a tensor's terms; those that no longer move, or share an axis with another, are given up."""
        kept = []
        for i, ids in enumerate(terms):
            others = set().union(*(extent(x) for j, x in enumerate(terms) if j != i))
            if ids.size == 1 or extent(ids) & others:
                self.freeze([ids])
            elif self.roots(ids).any():
                kept.append(ids)
        self.terms[id(tensor)] = kept

    def together(self, operands: list[tuple[list[np.ndarray], Tensor]], product: bool = False) -> list[np.ndarray]:
        """Terms of an elementwise result; operands: terms and the tensor (as broadcast) they belong to.

        A tensor that is constant along an axis (by broadcasting: stride 0) lets that axis move, but a sum does not let
        it be scaled. In a product factors would add: the first operand keeps its own.
        """
        rank = max(t.dim() for _, t in operands)
        found: list[np.ndarray] = []
        for terms, _ in operands:
            for ids in terms:
                ids = ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
                mates = [i for i, other in enumerate(found) if extent(other) & extent(ids)]
                if self.scale and product and mates:
                    self.freeze([ids])
                    continue
                for i in mates:
                    self.tie(found[i], ids)
                    found[i] = np.broadcast_arrays(found[i], ids)[0]
                if not mates:
                    found.append(ids)
        for ids in found:
            for terms, t in operands:
                axes = {a - (rank - t.dim()) for a in extent(ids)} - set(range(-rank, 0))
                if any(extent(x) & axes for x in terms):
                    continue
                if self.scale:
                    loose = not product
                else:
                    varying = {a for a in axes if t.shape[a] > 1 and t.stride(a) != 0}
                    loose = any(self.moves(ids, a + rank - t.dim()) for a in varying)
                if loose:
                    self.freeze([ids])
        return found

    # Shapes

    def reshape(self, ids: np.ndarray, old: torch.Size, new: torch.Size) -> np.ndarray:
        """A term of a tensor of shape `old`, seen as `new`."""
        i = j = 0
        chunks, full, target = [], [], []
        while i < len(old) or j < len(new):  # the shortest runs of axes with equally many positions
            start, i, j = (i, j), min(i + 1, len(old)), min(j + 1, len(new))
            while (a := int(np.prod(old[start[0] : i]))) != (b := int(np.prod(new[start[1] : j]))):
                i, j = (i + 1, j) if a < b else (i, j + 1)
            moving = any(n > 1 for n in ids.shape[start[0] : i])
            full += old[start[0] : i] if moving else [1] * (i - start[0])
            target += new[start[1] : j] if moving else [1] * (j - start[1])
            chunks += [range(start[1], j)] if moving else []
        ids = np.broadcast_to(ids, full).reshape(target)
        for chunk in chunks:
            for axis in chunk:
                if (self.roots(ids) == self.roots(ids.take([0], axis))).all():
                    ids = ids.take([0], axis)
            varying = [axis for axis in chunk if ids.shape[axis] > 1]
            if len(varying) > 1 and not self.scale:
                ids = self._split(ids, varying)
        return ids

    def _split(self, ids: np.ndarray, axes: list[int]) -> np.ndarray:
        """One axis that moves has become several: let only the last move, or blocks of it along the one before."""
        if self.blocks:
            self.split += np.unique(ids).tolist()
            self.tie(ids, ids.take([0], axes[-1]))
            ids, axes = ids.take([0], axes[-1]), axes[:-1]
        outer = np.zeros((1,) * ids.ndim, np.int64)
        for axis in axes[:-1]:
            place = np.arange(ids.shape[axis]).reshape([-1 if a == axis else 1 for a in range(ids.ndim)])
            outer = outer * ids.shape[axis] + place
        self.mark(ids, outer)
        return ids

    def _parts(self, name: str, x: Tensor, args: tuple, outs: list[Tensor]) -> list[list[np.ndarray]]:
        position = 2 if name.startswith("split") else 1
        dim = args[position] % x.dim() if len(args) > position else 0
        every = np.arange(x.shape[dim])
        if name == "select":
            parts = [every[[args[2]]]]
        elif name == "slice":
            parts = [every[slice(*args[2:])] if len(args) > 2 else every]
        else:
            sizes = [1 if name == "unbind" else t.shape[dim] for t in outs]
            parts = np.split(every, np.cumsum(sizes)[:-1])
        result = []
        for part in parts:
            found = [ids.take(part, dim) if ids.shape[dim] > 1 else ids for ids in self.get(x)]
            for ids, whole in zip(found, self.get(x), strict=True):
                if ids.size < whole.size and not self.scale:
                    self.mark(ids)  # what is inside and what is not are no equals
            result.append(
                [ids.squeeze(dim) for ids in found if ids.size > 1] if name in ("select", "unbind") else found
            )
            self.freeze([ids for ids in found if ids.size == 1])
        return result

    def _cat(self, tensors: list[Tensor], dim: int) -> list[np.ndarray]:
        parts = []
        for t in tensors:
            along = [ids for ids in self.get(t) if ids.shape[dim] > 1]
            self.freeze(along[1:])
            shape = [n if axis == dim else 1 for axis, n in enumerate(t.shape)]
            parts.append(along[0] if along else np.zeros(shape, np.int64))
        common = np.max([p.shape for p in parts], 0)
        whole = [np.broadcast_to(p, [*common[:dim], p.shape[dim], *common[dim + 1 :]]) for p in parts]
        rest = self.together([([i for i in self.get(t) if i.shape[dim] == 1], t) for t in tensors])
        return [*rest, np.concatenate(whole, dim)]

    def _still(self, touched: set[int], terms: list[np.ndarray]) -> list[np.ndarray]:
        """Terms of the axes that an operation leaves alone; those of the others may not move."""
        self.freeze([ids for ids in terms if extent(ids) & touched])
        return [ids for ids in terms if not extent(ids) & touched]

    def _reduce(self, name: str, x: Tensor, args: tuple, out: Tensor) -> list[np.ndarray]:
        """Sums and the like do not ask for an order, but a factor does not pass them unless all have it."""
        where = 2 if name in ("linalg_vector_norm", "norm") else 1
        given = args[where] if len(args) > where else None
        dims = {d % x.dim() for d in ([given] if isinstance(given, int) else given or range(x.dim()))}
        kept = []
        for ids in self.get(x):
            if self.scale and (extent(ids) & dims or name not in ("mean", "sum", "amax", "amin")):
                self.freeze([ids])
            elif not extent(ids) & dims:
                kept.append(ids if out.dim() == x.dim() else ids.squeeze(tuple(dims)))
            elif any(self.moves(ids, axis) for axis in extent(ids) - dims):
                self.freeze([ids])
        return kept

    # Layers

    def matmul(self, a: Tensor, b: Tensor) -> list[np.ndarray]:
        """[.., i, k] x [.., k, j]: terms along k are tied (their factors cancel), the others go on."""
        inner = []
        for tensor, k, free in ((a, -1, -2), (b, -2, -1)):
            along = [x for x in self.get(tensor) if x.shape[k] > 1]
            self.freeze([x for x in along if x.shape[free] > 1] + along[1:])
            inner.append([x.swapaxes(-1, -2) if k == -1 else x for x in along[:1]])
        self._cancel(*inner)
        outer = [([x for x in self.get(a) if x.shape[-1] == 1], a[..., :1])]
        outer += [([x for x in self.get(b) if x.shape[-2] == 1], b[..., :1, :])]
        return self.together(outer, product=True)

    def _cancel(self, a: list[np.ndarray], b: list[np.ndarray]) -> None:
        """Tie what is summed over: moved together, and scaled inversely."""
        if a and b and a[0].shape[-2:] == b[0].shape[-2:]:
            self.tie(a[0], -b[0] if self.scale else b[0])
            a, b = a[1:], b[1:]
        self.freeze(a + b)

    def _across(self, vector: Tensor | None, out: Tensor) -> list[tuple[list[np.ndarray], Tensor]]:
        """A vector of channels [C] as an operand next to [B, C, ..]."""
        shape = (1, -1) + (1,) * (out.dim() - 2)
        return [] if vector is None else [([ids.reshape(shape) for ids in self.get(vector)], vector.view(shape))]

    def _convolution(self, x: Tensor, w: Tensor, bias: Tensor | None, groups: int, out: Tensor) -> list[np.ndarray]:
        inputs = self._still(set(range(x.dim())) - {1}, self.get(x))
        rows = [ids for ids in self.get(w) if extent(ids) == {0}][:1]
        self.freeze([ids for ids in self.get(w) if extent(ids) - {0, 1}])  # the kernel's own axes
        rest = [ids for ids in self.get(w) if not extent(ids) - {0, 1}]
        columns = [ids for ids in rest if not any(ids is row for row in rows)]
        if groups > 1 and w.shape[1] == 1 and not self.scale:  # depthwise: a row is its own channel's
            if inputs and rows and x.shape[1] == w.shape[0]:
                self.tie(inputs[0], rows[0].swapaxes(0, 1))
            else:
                self.freeze(inputs + rows)
        elif inputs and groups > 1:
            each = inputs[0].reshape(groups, -1)
            if not self.scale:
                self.mark(each, np.arange(groups)[:, None])
            shape = (w.shape[0], w.shape[1]) + (1,) * (w.dim() - 2)
            self._cancel([each.repeat(w.shape[0] // groups, 0).reshape(shape)], columns)
        else:
            self._cancel(inputs, columns)
        rows = [ids.swapaxes(0, 1) for ids in rows]
        return self.together([(rows, out), *self._across(bias, out)])

    def _norm(self, name: str, args: tuple, out: Tensor) -> list[np.ndarray]:
        x, terms = args[0], self.get(args[0])
        if "batch_norm" in name:
            weight, bias, mean, var = args[1:5]
            affine = [*self._across(weight, out), *self._across(bias, out)]
            statistics = [*self._across(mean, out), *self._across(var, out)]
            if self.scale and mean is not None:
                self.together([(terms, x), *statistics[:1]])
                self.statistics[self.names[id(mean)]] = self.names[id(var)], args[-1]
                return self.together(affine) if affine else []
        elif name == "native_group_norm":
            affine, statistics = [*self._across(args[1], out), *self._across(args[2], out)], []
            for ids in [] if self.scale else terms:
                if extent(ids) == {1}:
                    self.mark(ids.ravel(), np.arange(ids.size) // (ids.size // args[6]))
        else:
            affine, statistics = [(self.get(t), t) for t in args[2:4] if t is not None], []
        if self.scale:
            self.freeze(terms)
            return _lead(self.together(affine), out.dim()) if affine else []
        return self.together([(terms, x), *affine, *statistics])

    # Operations

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outs = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
        for tensor in outs:
            self.alive.append(tensor)
            self.bases.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        given = [*args, *(kwargs or {}).values()]
        tensors = [t for a in given for t in (a if isinstance(a, (tuple, list)) else [a]) if isinstance(t, Tensor)]
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        result = self._rule(name, func, args, tensors, outs) if args and tensors and outs else None
        if result is None:  # no rule: nothing that goes in may move
            for tensor in tensors:
                self.freeze(self.get(tensor))
            result = [[] for _ in outs]
        for tensor, terms in zip(outs, result, strict=False):
            self.put(tensor, terms)
        return out

    def _rule(
        self, name: str, func: Any, args: tuple, tensors: list[Tensor], outs: list[Tensor]
    ) -> list[list[np.ndarray]] | None:
        """The terms of each output, or None where no rule holds. Ties on the way what must move together."""
        x, out = args[0], outs[0]
        terms, rank = self.get(x), out.dim()
        if name in SAME and len(tensors) == 1:
            return [terms]
        if name.startswith("new_") or name.endswith("_like"):
            return [[]]
        if name == "as_strided" and out.shape == x.shape:  # to channels_last
            return [terms]
        if name in ("expand", "embedding"):  # of a table of tokens rows are chosen: columns alone move
            return [_lead(self._still({0}, terms) if name == "embedding" else terms, rank)]
        if name in RESHAPES:
            return [[self.reshape(ids, x.shape, out.shape) for ids in terms]]
        if name in ("t", "transpose", "permute"):
            axes = [a % rank for a in args[1]] if name == "permute" else list(range(rank))
            if name != "permute" and rank > 1:
                i, j = (0, 1) if name == "t" else args[1:3]
                axes[i], axes[j] = axes[j], axes[i]
            return [[ids.transpose(axes) for ids in terms]]
        if name in ("select", "unbind", "slice", "split", "split_with_sizes"):
            return self._parts(name, x, args, outs)
        if name == "cat":
            return [self._cat(x, args[1] % rank if len(args) > 1 else 0)]
        if name in ("mm", "bmm"):
            return [self.matmul(x, args[1])]
        if name in ("addmm", "baddbmm"):
            return [self.together([(self.matmul(*args[1:3]), out), (terms, x)])]
        if name == "convolution" and not args[6]:
            return [self._convolution(*args[:3], args[8], out)]
        if "batch_norm" in name or name in ("native_layer_norm", "native_group_norm"):
            return [self._norm(name, args, out)]
        if name in REDUCTIONS:
            return [self._reduce(name, x, args, o) for o in outs]
        if name.startswith(SPATIAL):
            return [self._still({rank - 1, rank - 2}, terms)]
        if name == "constant_pad_nd" and not (self.scale and any(args[2:])):
            return [self._still({rank - 1 - i // 2 for i, pad in enumerate(args[1]) if pad}, terms)]
        if name in MIXING:
            return [self._still({d % rank for d in args[MIXING[name]]}, terms)]
        if name in ("view_as_real", "view_as_complex"):
            return [[ids[..., None] if name == "view_as_real" else ids[..., 0] for ids in terms]]
        if name == "index" and (count := sum(i is not None for i in args[1])) and None not in args[1][:count]:
            kept = self._still(set(range(count)), terms)
            return [[ids.reshape((1,) * (rank - x.dim() + count) + ids.shape[count:]) for ids in kept]]
        if name == "copy" and (base := self.bases.get(x.untyped_storage().data_ptr(), x)).dim() == args[1].dim():
            # Into a slice of a larger tensor (circular padding): what is read from there moves as what was written.
            old = [(self.get(base), base)] if self.get(base) else []
            self.put(base, self.together([(self.get(args[1]), args[1]), *old]))
            return [self.get(base)]
        if torch.Tag.pointwise in func.tags or name in CURVED:
            linear = name in SUMS | PRODUCTS and isinstance(x, Tensor) and (name in PRODUCTS or len(tensors) > 1)
            if self.scale:
                for tensor in [] if linear and name != "div" else tensors[1:] if linear else tensors:
                    self.freeze(self.get(tensor))
            return [self.together([(self.get(t), t) for t in tensors], product=name in PRODUCTS)]
        return None


def _lead(terms: list[np.ndarray], rank: int) -> list[np.ndarray]:
    """Terms of a tensor broadcast to more axes."""
    return [ids.reshape((1,) * (rank - ids.ndim) + ids.shape) for ids in terms]
