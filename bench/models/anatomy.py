"""What a network is made of, noted once by its builder: taps that see padding only, heads, the quicker layout."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Anatomy:
    """What `examine` found.

    dead: weights of convolutions some of whose taps see nothing but padding: a 3x3 kernel on a 1x1 map has eight. The
    function does not depend on them, training does not move them. heads: modules behind the feature extractor.
    channels_last: whether the CPU trains it quicker in that layout (benchmarks/layout.py): where most of what
    convolutions read and write passes through 1x1 or grouped ones (1.1 to 1.6 times), unless the weights of all
    outweigh a batch's maps (0.65 times); with full 3x3 kernels it is slower or the same.
    """

    dead: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    channels_last: bool = False

    def headed(self, name: str) -> bool:
        """Whether a tensor belongs to a head."""
        return any(name.startswith(f"{head}.") for head in self.heads)


def convolutional(net: nn.Module) -> bool:
    """Whether a network has convolutions that look at more than patches apart."""
    return any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in net.modules())


def of(net: nn.Module) -> Anatomy:
    """What the builder noted of a network; of one that nobody examined: nothing."""
    return getattr(net, "anatomy", Anatomy())


def examine(net: nn.Module, images: Tensor, heads: frozenset[str]) -> Tensor:
    """What `net` gives for images [B, 3, H, W]; notes its Anatomy at that size."""
    was_training = net.training
    dead: set[str] = set()
    maps, weights = {True: 0, False: 0}, 0

    def note(name: str, conv: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal weights
        maps[conv.kernel_size == (1, 1) or conv.groups > 1] += args[0][0].numel() + out[0].numel()
        weights += conv.weight.numel()
        if not all(_taps_see_pixels(conv, axis, args[0].shape[2 + axis], out.shape[2 + axis]) for axis in (0, 1)):
            dead.add(f"{name}.weight")

    hooks = [
        m.register_forward_hook(partial(note, name)) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            out = net.eval()(images)
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    last = maps[True] > maps[False] and 64 * sum(maps.values()) > weights
    net.anatomy = Anatomy(frozenset(dead), heads, last)
    return out


def work(net: nn.Module, example: Tensor) -> int:
    """Multiplications of convolutions and linear layers in a forward pass of an input [1, ...]."""
    found = [0]

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        inside = layer.weight.numel() // len(layer.weight)  # multiplications of a value that comes out
        found[0] += inside * out.numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.inference_mode():
        net.eval()(example)
    for hook in hooks:
        hook.remove()
    return found[0]


def _taps_see_pixels(conv: nn.Conv2d, axis: int, size: int, positions: int) -> bool:
    """Whether each tap along an axis falls on the map of `size`, and not on padding, at one of the output positions."""
    if conv.padding_mode != "zeros":
        return True
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    # "same": even on both sides, or nearly
    given = {"same": reach // 2, "valid": 0}[conv.padding] if isinstance(conv.padding, str) else conv.padding[axis]
    starts = range(-given, -given + conv.stride[axis] * positions, conv.stride[axis])
    return all(any(0 <= at + tap < size for at in starts) for tap in range(0, reach + 1, conv.dilation[axis]))


def receptive_field(net: nn.Module, example: Tensor, most: int = 512) -> int | None:
    """Pixels along a side of the input that a pixel in the middle of the output depends on, at most `most`; None where
    that cannot be told from outside (a service, outputs that were changed). example: an input [N, 3, H, W].

    Counted on a copy whose weights are all positive and whose pooling takes means, so that nothing cancels and no path
    is closed: what the architecture sees, not what its training made of it.
    """
    twin = copy.deepcopy(net).eval()
    if not twin(example[:1]).requires_grad:
        return None
    for name, module in [*twin.named_modules()]:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()
        elif isinstance(module, nn.MaxPool2d):
            above, _, own = name.rpartition(".")
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            twin.get_submodule(above).register_module(own, pool)
    strip = torch.full((1, 3, most, 32), 255.0, dtype=torch.float64, requires_grad=True)
    pixel = twin.double().cpu()(strip)[..., most // 2, 16].sum()
    (slope,) = torch.autograd.grad(pixel, strip)
    return int(slope.abs().amax((0, 1, 3)).count_nonzero())
