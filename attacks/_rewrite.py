"""Writing a message under a key by the least change of the weights: no data, no training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from bench.types import Key, Method

ROUNDS = 20  # of logits that are linear only in a small neighbourhood
DAMPING = 0.01  # of these, in units of A A^T along the first residual


def rewrite(
    model: nn.Module, method: Method, key: Key, message: np.ndarray, iterations: int = 200, margin: float = 1.0
) -> None:
    """The least change of the marked weights, in place, after which the key reads `message`.

    What bits are decoded from (`Method.channel`: the logits) is linear in the weights, y = A w (permutation and scale
    held fixed): conjugate gradients solve A A^T u = target - y, the change is A^T u. The target has `margin` times the
    median margin of the old bits. Where it is not linear (Method.linear), that is done again from where it led, damped
    (Levenberg, Marquardt), until all bits are read; there may be messages that no change writes: a reader of 100 hidden
    units has 100 numbers to make 256 bits of.
    """
    y = method.channel(model, key)
    sign = method.coded(replace(key, message=torch.from_numpy(message))).to(y)
    target = margin * sign * y.detach().abs().median()
    for _ in range(1 if method.linear else ROUNDS):
        _step(method.channel(model, key), model, method, key, target, iterations)
        if not method.linear and bool((sign * method.channel(model, key) > 0).all()):
            break


def _step(y: Tensor, model: nn.Module, method: Method, key: Key, target: Tensor, iterations: int) -> None:
    """The change that would be enough if what bits are decoded from, y, were linear in the weights."""
    inputs = [model.get_parameter(name) for name in key.where]
    used = torch.autograd.grad(y, inputs, torch.ones_like(y), retain_graph=True, allow_unused=True)
    inputs = [w for w, g in zip(inputs, used, strict=True) if g is not None]
    mix = torch.zeros_like(y, requires_grad=True)
    back = torch.autograd.grad(y, inputs, mix, create_graph=True)

    def normal(u: Tensor) -> Tensor:
        slopes = torch.autograd.grad(y, inputs, u, retain_graph=True)
        return torch.autograd.grad(back, mix, slopes, retain_graph=True)[0]

    residual = (target - y).detach()
    u, direction, least = torch.zeros_like(residual), residual.clone(), 1e-10 * residual.dot(residual)
    damping = 0.0 if method.linear else DAMPING * normal(direction).dot(direction) / residual.dot(residual)
    for _ in range(iterations if residual.any() else 0):
        ahead, size = normal(direction), residual.dot(residual)
        if not method.linear:
            ahead = ahead + damping * direction
        length = size / direction.dot(ahead)
        u, residual = u + length * direction, residual - length * ahead
        if residual.dot(residual) <= least:
            break
        direction = residual + residual.dot(residual) / size * direction
    change = torch.autograd.grad(y, inputs, u)
    with torch.no_grad():
        for weight, step in zip(inputs, change, strict=True):
            weight += step
