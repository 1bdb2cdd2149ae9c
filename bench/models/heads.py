"""Classifiers' heads: found, and exchanged for other classes."""

from __future__ import annotations

import torch
from torch import nn

from bench.errors import ConfigError

# Top-level modules behind the feature extractor: an attacker exchanges them freely.
HEADS = {"head", "heads", "head_dist", "fc", "classifier", "last_linear", "pre_logits", "conv_head", "aux1", "aux2"}


def head_name(net: nn.Module, num_classes: int) -> str:
    """Name of the module that gives the logits: the last linear or convolution with num_classes outputs.

    Raises ConfigError where there is none.
    """
    found = [
        name
        for name, module in net.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes)
    ]
    if not found:
        raise ConfigError(f"the model has no layer with {num_classes} outputs to serve as its head")
    return found[-1]


def same(net: nn.Module, head: str) -> list[str]:
    """The head and whatever else gives logits beside it, as networks that were distilled do (DeiT, LeViT, RepViT): all
    layers of as many outputs in top-level modules of heads; in the order of definition."""
    if (weight := getattr(net.get_submodule(head), "weight", None)) is None:
        return [head]
    count = weight.shape[0]
    layers = ((name, m) for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    found = [name for name, m in layers if m.weight.shape[0] == count and name.split(".")[0] in HEADS]
    return found if head in found else [*found, head]


def new_head(net: nn.Module, old_classes: int, new_classes: int, seed: int) -> nn.Module:
    """Exchange the head, or all of them, in place, for freshly initialised ones with new_classes outputs."""
    torch.manual_seed(seed)
    for name in same(net, head_name(net, old_classes))[::-1]:
        old = net.get_submodule(name)
        options = {"bias": old.bias is not None, "device": old.weight.device}
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(old.in_features, new_classes, **options)
        else:
            new = nn.Conv2d(old.in_channels, new_classes, old.kernel_size, old.stride, old.padding, **options)
        net.set_submodule(name, new)
    return net
