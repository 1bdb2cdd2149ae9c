"""A module that a method adds to a network, in parallel to one of its parts: put in, found again, cut out.

It lives in the network under the name `watermark`, and a forward hook adds what it gives to that part's output, so
that no other weight changes its name. Anybody who holds the network sees it, its attacker included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from bench.types import Task

NAME = "watermark"


def attach(net: nn.Module, site: str, module: nn.Module) -> nn.Module:
    """`net`, with the part called `site` giving x + module(x) where it gave x. In place."""
    net.add_module(NAME, module)
    net.get_submodule(site).register_forward_hook(partial(_add, module))
    return net


def detach(net: nn.Module) -> nn.Module:
    """`net` without what `attach` put in. In place."""
    for part in net.modules():
        for number, hook in list(part._forward_hooks.items()):
            if getattr(hook, "func", None) is _add:
                del part._forward_hooks[number]
    delattr(net, NAME)
    return net


def branch(net: nn.Module) -> nn.Module | None:
    """The module that `attach` put in, or None."""
    return getattr(net, NAME, None)


def own_outputs(net: nn.Module, task: Task) -> Callable[[nn.Module, Any], Tensor]:
    """A loss (model, batch) against what `net` gives now, without labels. What is attached to it is untrained, and not
    part of that."""
    teacher = copy.deepcopy(net).eval().requires_grad_(False)
    if branch(teacher) is not None:
        detach(teacher)
    return lambda model, batch: task.distill(model, teacher, batch)


def _add(module: nn.Module, _: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out + module(out)
