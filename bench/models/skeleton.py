"""A network of names alone: tensors where a network has them, so that a mark is read from a file without its code."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from bench.models.anatomy import Anatomy


class Held(nn.Module):
    """Stands for a convolution or a linear layer."""


class Conv1D(Held):
    """Stands for transformers' layer of that name, which stores its weight as (in, out) (bench.models.weights)."""

    nf = 0


def skeleton(tensors: Mapping[str, Tensor], carriers: Collection[str], turned: Collection[str] = ()) -> nn.Module:
    """Modules that hold `tensors` under their names and compute nothing. carriers: names of the weights of convolutions
    and linear layers, `turned` of those that are stored as (in, out)."""
    net, made = nn.Module(), {}
    kinds = {name.rpartition(".")[0]: Conv1D if name in turned else Held for name in carriers}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        at, holder = "", net
        for part in path:
            at = f"{at}.{part}" if at else part
            if part not in holder._modules:
                holder.add_module(part, kinds.get(at, nn.Module)())
            holder = holder._modules[part]
        if tensor.is_floating_point() and not last.startswith("running_"):
            # One tensor under two names is one parameter.
            one = made.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
            holder.register_parameter(last, one)
        else:
            holder.register_buffer(last, tensor)
    net.anatomy = Anatomy()
    return net.eval()
