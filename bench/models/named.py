"""Networks of anybody's own code, by the name they are imported by."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bench import spec
from bench.errors import ConfigError, near
from bench.models.base import Network, Signature
from bench.models.heads import HEADS


@dataclass(frozen=True)
class Named(Network):
    """An nn.Module by name, `package.module:Name`: a class, or a function that gives one, imported from the working
    directory too. kwargs: what it is called with; where it takes `num_classes` and none is given, the data's number.

    gives: what comes out, as tasks call it: classes or maps. A hash covers the name and the file that it is in, not
    what that imports.
    """

    name: str
    kwargs: dict[str, Any]
    outputs: str = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outputs not in ("classes", "maps", "pictures"):
            raise ConfigError(f"model.outputs={self.outputs}: not known; valid: classes, maps, pictures")

    @property
    def gives(self) -> str:  # type: ignore[override]
        return self.outputs

    @property
    def title(self) -> str:
        return self.label or self.name.rpartition(":")[2].rpartition(".")[2]

    def identity(self) -> dict[str, Any]:
        file = getattr(sys.modules[self.made.__module__], "__file__", None)
        return super().identity() | {"code": spec.sha256(Path(file)) if file else None}

    @property
    def made(self) -> Callable[..., nn.Module]:
        """What is called. Raises ConfigError where there is no such thing."""
        module, colon, name = self.name.partition(":")
        if not colon or not module or not name:
            raise ConfigError(f"model.name={self.name}: a module and a name in it, package.module:Name")
        here = str(Path.cwd())
        try:
            if here not in sys.path:
                sys.path.insert(0, here)
            found: Any = importlib.import_module(module)
        except Exception as error:  # whatever somebody's module does when it is imported
            raise ConfigError(f"model.name={self.name}: {type(error).__name__}: {error}") from error
        names = [n for n in vars(found) if not n.startswith("_")]
        for part in name.split("."):
            if not hasattr(found, part):
                raise ConfigError(f"model.name={self.name}: {module} has no {part}; {near(part, names, 12)}")
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError(f"model.name={self.name}: {name} is a {type(found).__name__}, nothing to be called")
        return found

    def construct(self, io: Signature) -> nn.Module:
        kwargs = {**self.kwargs}
        if "num_classes" in _taken(self.made) and io.num_classes:
            kwargs.setdefault("num_classes", io.num_classes)
        try:
            net = self.made(**kwargs)
        except Exception as error:  # of somebody's constructor
            raise ConfigError(
                f"model.name={self.name} called with {kwargs}: {type(error).__name__}: {error}; "
                "+model.kwargs.NAME=VALUE"
            ) from error
        if not isinstance(net, nn.Module):
            raise ConfigError(f"model.name={self.name} gives a {type(net).__name__}, no torch.nn.Module")
        return net

    def heads(self, net: nn.Module, io: Signature) -> frozenset[str]:
        """The layer that gives the outputs, and what else is at the top and called as heads are."""
        return frozenset([self.head(net, io), *(name for name, _ in net.named_children() if name in HEADS)])


def _taken(made: Callable[..., Any]) -> set[str]:
    """Names of the arguments of a function or class."""
    import inspect

    try:
        return set(inspect.signature(made).parameters)
    except (TypeError, ValueError):
        return set()
