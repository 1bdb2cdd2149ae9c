"""Which weights carry the mark: one rule for all methods and all networks.

Candidates are the weights of convolutions and linear layers outside the head, but for convolutions some of whose taps
see nothing but padding (a 3x3 kernel on a 1x1 map): a mark there would survive because nobody needs it. They are
grouped into stages by the first numbered part of their names (`layer4`, `features.7`, `blocks.11`). The mark goes into
the last stage's largest weight with enough capacity (the first of equals: an inner one); where no weight of that stage
has it, the stage before is asked, and stages made mostly of convolutions that see padding come last. `method.layer`
narrows the candidates by name or glob.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from bench.errors import ConfigError, near
from bench.models import anatomy
from bench.models.skeleton import Held
from bench.types import Key, Method

CARRIERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention, Held)


def conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a linear layer whose weight is stored as (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every convolution and linear weight (out, in, ...) by name, in the order of definition; tied ones once. Of
    transformers' Conv1D a view that is turned."""
    found, seen = {}, set()
    for name, module in model.named_modules():
        # torch's own attention keeps the three projections in one parameter without a module.
        attribute = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        weight = getattr(module, attribute) if isinstance(module, CARRIERS) or conv1d(module) else None
        # What a parametrisation computes is another tensor each time.
        one = id(module) if parametrize.is_parametrized(module, attribute) else id(weight)
        if weight is not None and one not in seen:
            seen.add(one)
            found[f"{name}.{attribute}"] = weight.t() if conv1d(module) else weight
    return found


def candidates(model: nn.Module) -> dict[str, Tensor]:
    """The weights that may carry a mark: see above. A model that is all head offers all but its last."""
    everything = weights(model)
    noted = anatomy.of(model)
    inner = {k: w for k, w in everything.items() if not noted.headed(k)}
    live = {k: w for k, w in inner.items() if k not in noted.dead}
    return live or inner or dict(list(everything.items())[:-1])


def stage(name: str) -> str:
    """Name up to and including its first numbered part: `layer4.1.conv2.weight` -> `layer4`."""
    numbered = re.match(r"\D*\d[^.]*", name)
    return numbered[0] if numbered else name.split(".")[0]


def choose(model: nn.Module, pattern: str | None, capacity: Callable[[Tensor], int], need: int, what: str) -> str:
    """Name of the weight that carries the mark.

    capacity(weight) is compared with `need`, both counted in `what`. Raises ConfigError, with the arithmetic,
    when no candidate is large enough, and with near names when `pattern` matches none.
    """
    found = candidates(model)
    if pattern is not None:
        everything = weights(model)
        found = {
            k: w
            for k, w in everything.items()
            if fnmatchcase(k, pattern) or fnmatchcase(k.removesuffix(".weight"), pattern)
        }
        if not found:
            names = [k.removesuffix(".weight") for k in everything]
            raise ConfigError(
                f"method.layer={pattern} matches no convolution or linear layer; {near(pattern, names, 12)}; "
                "list them: python -m bench.layers model=..."
            )
    last_first = [*dict.fromkeys(map(stage, found))][::-1]
    for place in sorted(last_first, key=lambda place: _mostly_dead(model, place)):
        fit = [name for name in found if stage(name) == place and capacity(found[name]) >= need]
        if fit:
            return max(fit, key=lambda name: found[name].numel())  # the first of equals
    best = max(found, key=lambda name: capacity(found[name]))
    raise ConfigError(
        f"the message needs {need:,} {what}, but {'the largest' if len(found) > 1 else 'layer'} "
        f"{best.removesuffix('.weight')} {tuple(found[best].shape)} carries {capacity(found[best]):,}: "
        "choose a larger layer (python -m bench.layers model=...), a larger model or a smaller method.n_bits"
    )


def _mostly_dead(model: nn.Module, name: str) -> bool:
    """Whether more than half of a stage's weights are those of convolutions that see padding (models.anatomy)."""
    sizes = {k: w.numel() for k, w in weights(model).items() if stage(k) == name}
    return 2 * sum(n for k, n in sizes.items() if k in anatomy.of(model).dead) > sum(sizes.values())


def read(model: nn.Module, name: str) -> Tensor:
    """The weight called `name` (out, in, ...), float32, differentiable, also through a parametrisation; of a quantised
    module its dequantised values.

    Raises AttributeError when the model has no such weight.
    """
    module, _, attribute = name.rpartition(".")
    holder = model.get_submodule(module)
    norm = _normed(holder, attribute)
    weight = getattr(holder, attribute) if norm is None else norm.compute_weight(holder)
    weight = weight() if callable(weight) else weight  # a quantised module gives its weight by a call
    weight = weight.t() if conv1d(holder) and attribute == "weight" else weight
    return (weight.dequantize() if weight.is_quantized else weight).float()


def _normed(holder: nn.Module, attribute: str) -> WeightNorm | None:
    """The hook of torch.nn.utils.weight_norm, under which the attribute is what it was in the last forward pass."""
    hooks = holder._forward_pre_hooks.values()
    return next((h for h in hooks if isinstance(h, WeightNorm) and h.name == attribute), None)


@torch.no_grad()
def write(model: nn.Module, name: str, where: Tensor, values: Tensor) -> None:
    """values [m] into the flat positions `where` of the weight called `name`, in (out, in, ...) order, in place; where
    it is computed from others, into these, as far as they have an inverse."""
    module, _, attribute = name.rpartition(".")
    holder = model.get_submodule(module)
    norm = _normed(holder, attribute)
    if norm is None and not parametrize.is_parametrized(holder, attribute):
        weight = getattr(holder, attribute)
        weight = weight.t() if conv1d(holder) and attribute == "weight" else weight
        where, values = where.to(weight.device), values.to(weight)
        if weight.is_contiguous():
            weight.view(-1)[where] = values
        else:  # channels_last, or turned: no flat view in that order
            flat = weight.reshape(-1)
            flat[where] = values
            weight.copy_(flat.view(weight.shape))
        return
    weight = read(model, name).clone()
    weight.view(-1)[where.to(weight.device)] = values.to(weight)
    weight = weight.t() if conv1d(holder) and attribute == "weight" else weight
    if norm is None:
        setattr(holder, attribute, weight)
        return
    getattr(holder, f"{attribute}_v").copy_(weight)
    getattr(holder, f"{attribute}_g").copy_(torch.norm_except_dim(weight, 2, norm.dim))


def like(weight: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normal noise of a weight's shape, on its device, from `rng`."""
    return torch.from_numpy(rng.standard_normal(tuple(weight.shape), dtype=np.float32)).to(weight.device)


def pointed(model: nn.Module, method: Method, key: Key) -> dict[str, Tensor]:
    """Boolean masks of the weights that the bits are read from: those that a random mix of the logits depends on."""
    y = method.logits(model, key)
    names = [name for name in key.where if model.get_parameter(name).requires_grad]
    weights = [model.get_parameter(name) for name in names]
    mix = torch.linspace(1.0, 2.0, len(y), device=y.device)
    mix[::2] *= -1
    slopes = torch.autograd.grad(y, weights, mix, allow_unused=True)
    return {name: g != 0 for name, g in zip(names, slopes, strict=True) if g is not None and bool((g != 0).any())}
