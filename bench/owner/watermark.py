"""A mark for a network that somebody else's loop trains: penalty, step, key, verification."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from bench import spec
from bench.errors import SEEDS, ConfigError, bounded
from bench.models import align, checkpoints, weights
from bench.models.anatomy import Anatomy
from bench.models.heads import HEADS
from bench.owner import evidence, keyfile
from bench.owner.evidence import ALPHA, Evidence
from bench.types import Key


class Watermark:
    """One method's mark in one network, whoever trains it.

    method: a name of conf/method, of which `options` are options; model: any nn.Module, as it is or wrapped by
    DataParallel, DistributedDataParallel or torch.compile. Made before training; substituted weights are set now.
    seed: of message and secret; None: drawn from the operating system, as a key that is to be kept secret must be, for
    a seed that can be guessed is a key that can. layer: name or glob of the weight that carries the mark. example: an
    input of the network, or a tuple or dict of its arguments; where none is given, the first that the network is called
    with is noted. By it `save` finds which channels may be exchanged.

    Raises ConfigError for an unknown method or option, for a method that only the harness can embed, and where no layer
    carries the message.
    """

    def __init__(
        self,
        method: str,
        model: nn.Module,
        *,
        seed: int | None = None,
        layer: str | None = None,
        example: Any = None,
        **options: Any,
    ):
        self.model = bare(model)
        if seed is not None:
            bounded("seed", seed, *SEEDS)
        self.method = keyfile.method(method, **_options(method, layer, options))
        if why := self.method.harness_only or ("" if self.method.access == "weights" else "it reads outputs"):
            raise ConfigError(f"method {method} is embedded by `python -m bench.embed` alone: {why}")
        draws = np.random.default_rng(secrets.randbits(256) if seed is None else spec.derive(seed, "owner", "key"))
        with _examined(self.model):
            made = self.method.keygen(self.model, draws, None)
        if made is None:
            raise ConfigError(f"method {method} carries no message")
        evidence.enough(self.method, made)
        self.key: Key = made
        started = spec.derive(seed, "owner", "fit") if seed is not None else secrets.randbits(63)
        self.hooks = self.method.hooks(self.model, self.key, started)
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        if example is not None:
            self._inputs = _called(example)
        else:
            self._watch()

    def penalty(self, model: nn.Module | None = None) -> Tensor:
        """What is added to the loss, a scalar in float32; 0 for a method without one."""
        net = self.model if model is None else bare(model)
        if self.hooks.penalty is None:
            return torch.zeros((), device=weights.read(net, self.key.where[0]).device)
        return self.hooks.penalty(net)

    @torch.no_grad()
    def step(self, model: nn.Module | None = None) -> None:
        """To be called after each step of the optimiser: substituted weights are put back, what a method trains beside
        the network is trained."""
        if self.hooks.step is not None:
            self.hooks.step(self.model if model is None else bare(model))

    def save(self, path: str | Path, model: nn.Module | None = None) -> Path:
        """Write the key, mode 600, in a file that `bench.verify` reads; with it which copy of the network may be its
        reference, the one of now. Raises UserError; a file that is there is not written over."""
        net = self.model if model is None else bare(model)
        self.hooks.done()
        owned = self.owned(net)
        return keyfile.save(owned, Path(path))

    def verify(
        self, model: nn.Module | Mapping[str, Tensor] | str | Path | None = None, alpha: float = ALPHA
    ) -> Evidence:
        """What the key reads from a network, a state dict or a file."""
        self.hooks.done()
        net = self.model if model is None else model
        net = bare(net) if isinstance(net, nn.Module) else net
        owned = keyfile.Owned(self.key, self.method, **keyfile.described(self.model, self.key))
        if isinstance(net, nn.Module):
            with torch.no_grad(), evidence.unusable("the key does not fit the network"):
                found = evidence.judged(owned, net, alpha)
            return found
        return evidence.verify(net, owned, alpha=alpha)

    def owned(self, net: nn.Module) -> keyfile.Owned:
        """The key with all that it is read by from a file of the weights of `net`."""
        # What is saved are the weights as they are computed, under their plain names.
        held = checkpoints.plain(checkpoints.of(net.state_dict())).tensors
        kept = None
        if self._inputs is not None and (whole := plain(net)) is not None:
            try:
                kept = keyfile.kept(align.traced(whole, *self._inputs))
            except Exception:  # whatever somebody's network does with an input that was noted
                kept = None
        about = keyfile.described(net, self.key)
        return keyfile.Owned(self.key, self.method, **about, digest=keyfile.content(held), traced=kept)

    def _watch(self) -> None:
        """Note what the network is called with for the first time."""

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            hook.remove()
            self._inputs = tuple(map(_few, args)), {name: _few(x) for name, x in kwargs.items()}

        hook = self.model.register_forward_pre_hook(note, with_kwargs=True)


def _options(method: str, layer: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method for a network that is handed over as it is."""
    given = dict(options) if layer is None else {**options, "layer": layer}
    # `lambda` is a word of Python's.
    given = {("lambda_" if name == "lambda" else name): value for name, value in given.items()}
    # The network is marked as it is, whether somebody trained it before or not.
    return {"situation": "finetune", **given} if hasattr(keyfile.method(method), "situation") else given


def bare(model: nn.Module) -> nn.Module:
    """The network inside what wraps it."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a network is a torch.nn.Module, not {type(model).__name__}")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def _examined(net: nn.Module) -> Iterator[None]:
    """For the choice of a layer: the last layer is the head, and so is what is called as heads are."""
    if hasattr(net, "anatomy"):
        yield
        return
    names = list(weights.weights(net))
    if not names:
        raise ConfigError("the network has no convolution and no linear layer to carry a mark")
    heads = {names[-1].rpartition(".")[0], *(name for name, _ in net.named_children() if name in HEADS)}
    net.anatomy = Anatomy(heads=frozenset(heads))
    try:
        yield
    finally:
        del net.anatomy


def plain(net: nn.Module) -> nn.Module | None:
    """A copy of a network whose weights are parameters, whatever they were computed from; None for one that cannot be
    copied."""
    try:
        made = copy.deepcopy(net)
        for part in [*made.modules()]:
            if parametrize.is_parametrized(part):
                # Not by remove_parametrizations: a copy shares its class with the network, which would lose its weight.
                held = {name: getattr(part, name).detach().clone() for name in part.parametrizations}
                part.__class__ = type(part).__bases__[0]
                del part.parametrizations
                for name, value in held.items():
                    part.register_parameter(name, nn.Parameter(value))
            for hook in [*part._forward_pre_hooks.values()]:
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(part, hook.name)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    return made.eval()


def _few(given: Any) -> Any:
    """The first two of a batch, copied."""
    return given.detach()[:2].clone() if isinstance(given, Tensor) and given.dim() else given


def _called(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), {name: _few(x) for name, x in example.items()}
    return tuple(map(_few, example if isinstance(example, tuple) else (example,))), {}
