"""What a layer of a network gives for the pictures of a key."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import device_of
from bench.models import exchange, weights

BatchNorm = nn.modules.batchnorm._BatchNorm
CHUNK = 256  # pictures of a forward pass


def activations(model: nn.Module, name: str, pictures: Tensor) -> Tensor:
    """What the module of the weight `name` gives for pictures uint8 [B, 3, H, W], averaged over positions, behind the
    batch normalisation that takes it as it is, if one does: [B, M], or [B, 0] where the network never calls the module.

    In evaluation mode and float32, differentiable; nothing of the network changes.
    """
    module, given, norms = model.get_submodule(name.rpartition(".")[0]), [], []
    spatial = weights.read(model, name).dim() > 2

    def follows(norm: nn.Module, args: tuple[Any, ...]) -> None:
        if given and args[0] is given[0] and norm.running_mean is not None:
            norms.append(norm)

    hooks = [module.register_forward_hook(lambda module, args, out: given.append(out))]
    hooks += [m.register_forward_pre_hook(follows) for m in model.modules() if isinstance(m, BatchNorm)]
    found = []
    try:
        with exchange.evaluating(model):
            for part in pictures.to(device_of(model)).split(CHUNK):
                given.clear()
                norms.clear()
                model(part)
                found.append(
                    _averaged(given[0], spatial, norms[:1], len(part)) if given else part.new_zeros(len(part), 0)
                )
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


def _averaged(out: Tensor, spatial: bool, norms: list[nn.Module], count: int) -> Tensor:
    out = (out.movedim(1, -1) if spatial else out).float()
    # Windows of a picture may be in the batch: picture by picture. An average of normalised values is a normalised one.
    out = out.reshape(count, -1, out.shape[-1]).mean(1)
    for norm in norms:
        statistics = norm.running_mean, norm.running_var
        out = functional.batch_norm(out, *statistics, norm.weight, norm.bias, training=False, eps=norm.eps)
    return out


def projected(given: Tensor, projection: Tensor, n: int) -> Tensor:
    """Activations [groups * k, M], group by group, by their groups' means and a projection [M, N]: logits [n], of
    groups = n / N. 0 where these numbers do not fit."""
    m, bits = projection.shape
    if given.shape[1] != m or n % bits or len(given) % (n // bits):
        return torch.zeros(n, device=given.device)
    return (given.view(n // bits, -1, m).mean(1) @ projection.to(given)).flatten()
