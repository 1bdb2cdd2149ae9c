"""What a layer of a network gives for the pictures of a key."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import device_of
from bench.models import exchange, weights

BatchNorm = nn.modules.batchnorm._BatchNorm
FUNCTIONS = ("torch.nn.modules.activation", "timm.layers.activations")  # where activation functions come from
CHUNK = 256  # pictures of a forward pass


def activations(model: nn.Module, name: str, pictures: Tensor) -> Tensor:
    """What the module of the weight `name` gives for pictures uint8 [B, 3, H, W], averaged over positions, behind the
    batch normalisation that takes it as it is, if one does: [B, M], or [B, 0] where the network never calls the module.

    In evaluation mode and float32, differentiable; nothing of the network changes.
    """
    module, raw, given, norms = model.get_submodule(name.rpartition(".")[0]), [], [], []
    spatial = weights.read(model, name).dim() > 2

    def keep(count: int, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        raw.append(out)
        # At once: what follows may be done in place. Windows of a picture may be in the batch, picture by picture.
        out = (out.movedim(1, -1) if spatial else out).float()
        given.append(out.reshape(count, -1, out.shape[-1]).mean(1))

    def follows(norm: nn.Module, args: tuple[Any, ...]) -> None:
        if raw and args[0] is raw[0] and norm.running_mean is not None:
            norms.append(norm)

    found = []
    for part in pictures.to(device_of(model)).split(CHUNK):
        for kept in (raw, given, norms):
            kept.clear()
        hooks = [module.register_forward_hook(partial(keep, len(part)))]
        hooks += [m.register_forward_pre_hook(follows) for m in model.modules() if isinstance(m, BatchNorm)]
        try:
            with exchange.evaluating(model):
                model(part)
        finally:
            for hook in hooks:
                hook.remove()
        mean = given[0] if given else torch.zeros(len(part), 0, device=part.device)
        for norm in norms[:1]:  # an average of normalised values is a normalised average
            of = norm.running_mean, norm.running_var, norm.weight, norm.bias
            mean = functional.batch_norm(mean, *of, training=False, eps=norm.eps)
        found.append(mean)
    return torch.cat(found)


def projected(given: Tensor, projection: Tensor, n: int) -> Tensor:
    """Activations [groups * k, M], group by group, by their groups' means and a projection [M, N]: logits [n], of
    groups = n / N. 0 where these numbers do not fit."""
    m, bits = projection.shape
    if given.shape[1] != m or n % bits or len(given) % (n // bits):
        return torch.zeros(n, device=given.device)
    return (given.view(n // bits, -1, m).mean(1) @ projection.to(given)).flatten()


def rectified(model: nn.Module, example: Tensor) -> frozenset[str]:
    """The weights whose modules' outputs go, batch-normalised or as they are, straight into an activation function.

    There a constant matters. Before a sum it does not: what one branch gives more the other may give less. Functions
    that are no modules are not seen.
    """
    held: dict[int, tuple[Tensor, int, str]] = {}  # tensors by id, which is theirs as long as they are held
    found = set()

    def made(name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        held[id(out)] = (out, out._version, name)

    def source(args: tuple[Any, ...]) -> str | None:
        _, version, name = held.get(id(args[0]) if args else 0, (None, -1, None))
        return name if name and args[0]._version == version else None  # else something was added in place

    def passed(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if (name := source(args)) and out is not args[0]:
            made(name, module, args, out)
            if any(map(_is_function, module.children())):
                found.add(name)

    def ends(module: nn.Module, args: tuple[Any, ...]) -> None:
        if name := source(args):
            found.add(name)

    carriers = {id(w): name for name, w in weights.weights(model).items()}
    hooks = []
    for module in model.modules():
        if (name := carriers.get(id(getattr(module, "weight", None)))) is not None:
            hooks.append(module.register_forward_hook(partial(made, name)))
        elif isinstance(module, (BatchNorm, nn.Identity, nn.Dropout)):
            hooks.append(module.register_forward_hook(passed))
        elif _is_function(module):
            hooks.append(module.register_forward_pre_hook(ends))
    try:
        with torch.inference_mode(False), torch.no_grad(), exchange.evaluating(model):
            model(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(found)


def _is_function(module: nn.Module) -> bool:
    return type(module).__module__.startswith(FUNCTIONS) and not isinstance(module, nn.MultiheadAttention)
