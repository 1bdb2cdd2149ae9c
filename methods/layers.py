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

from bench.spec import near
from bench.types import ConfigError

# Top-level modules behind the feature extractor: an attacker exchanges them freely.
HEADS = {
    "head",
    "heads",
    "head_dist",
    "fc",
    "classifier",
    "last_linear",
    "pre_logits",
    "conv_head",
    "aux1",
    "aux2",
}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every convolution and linear weight by name, in the order of definition; tied ones once."""
    found, seen = {}, set()
    for name, module in model.named_modules():
        # torch's own attention keeps the three projections in one parameter without a module.
        attribute = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        carrier = isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention))
        weight = getattr(module, attribute) if carrier else None
        if weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            found[f"{name}.{attribute}"] = weight
    return found


def candidates(model: nn.Module) -> dict[str, Tensor]:
    """The weights that may carry a mark: see above. A model that is all head offers all but its last."""
    everything = weights(model)
    inner = {k: w for k, w in everything.items() if k.split(".")[0] not in HEADS}
    dead = getattr(model, "dead", frozenset())
    live = {k: w for k, w in inner.items() if k not in dead}
    return live or inner or dict(list(everything.items())[:-1])


def stage(name: str) -> str:
    """Name up to and including its first numbered part: `layer4.1.conv2.weight` -> `layer4`."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if re.search(r"\d", part):
            return ".".join(parts[: i + 1])
    return parts[0]


def stages(names: list[str]) -> list[list[str]]:
    """Names grouped by stage, in the order in which the stages first appear."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(stage(name), []).append(name)
    return list(groups.values())


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
    last_first = stages(list(found))[::-1]
    for names in sorted(last_first, key=lambda names: _mostly_dead(model, stage(names[0]))):
        fit = [name for name in names if capacity(found[name]) >= need]
        if fit:
            return max(fit, key=lambda name: (found[name].numel(), -names.index(name)))
    best = max(found, key=lambda name: capacity(found[name]))
    raise ConfigError(
        f"the message needs {need:,} {what}, but {'the largest' if len(found) > 1 else 'layer'} "
        f"{best.removesuffix('.weight')} {tuple(found[best].shape)} carries {capacity(found[best]):,}: "
        "choose a larger layer (python -m bench.layers model=...), a larger model or a smaller method.n_bits"
    )


def _mostly_dead(model: nn.Module, name: str) -> bool:
    """Whether more than half of a stage's weights are those of convolutions that see padding (bench.models)."""
    sizes = {k: w.numel() for k, w in weights(model).items() if stage(k) == name}
    dead = getattr(model, "dead", ())
    return 2 * sum(n for k, n in sizes.items() if k in dead) > sum(sizes.values())


def read(model: nn.Module, name: str) -> Tensor:
    """The weight called `name`, float32; of a quantised module its dequantised values.

    Raises AttributeError when the model has no such weight.
    """
    module, _, attribute = name.rpartition(".")
    weight = getattr(model.get_submodule(module), attribute)
    weight = weight() if callable(weight) else weight  # a quantised module gives its weight by a call
    return (weight.dequantize() if weight.is_quantized else weight).float()


def like(weight: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normal noise of a weight's shape, on its device, from `rng`."""
    return torch.from_numpy(rng.standard_normal(tuple(weight.shape), dtype=np.float32)).to(weight.device)
