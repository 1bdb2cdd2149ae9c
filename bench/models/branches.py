"""A module that a method adds to a network, in parallel to one of its parts: put in, found again, cut out.

It lives in the network under the name `watermark`, and a forward hook adds what it gives to that part's output, so
that no other weight changes its name. Anybody who holds the network sees it, its attacker included.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

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


def _add(module: nn.Module, _: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out + module(out)
