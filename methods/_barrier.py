"""Networks of box-free watermarking: the barrier that hides a mark in pictures, the extractor that reads it again.

Marks are [B, 1, S, S] in [0, 1], 0.5 for none, and are stretched to whatever picture they meet. Pictures are
[B, 3, H, W] in 0..255.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.models.restorers import Unet, started

BLANK = 0.5


def stretched(marks: Tensor, pictures: Tensor) -> Tensor:
    """Marks [B, 1, S, S], each of their pixels a square of the picture: [B, 1, H, W]."""
    return functional.interpolate(marks, pictures.shape[2:])


class Barrier(nn.Module):
    """H of the paper, a U-Net over picture and mark; gives the change it makes, so that it can be a branch.

    Not as there: the mark has a path of its own to the output (`direct`, one weight a colour). Untrained it changes
    nothing: U-Net and path end in zeros. `mark` [1, S, S] is what it hides when it is deployed.
    """

    def __init__(self, width: int, depth: int, size: int):
        super().__init__()
        self.unet = started(Unet(width, depth, more=1))
        self.direct = nn.Conv2d(1, 3, 1, bias=False)
        nn.init.zeros_(self.direct.weight)
        self.register_buffer("mark", torch.full((1, size, size), BLANK))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.change(pictures, self.mark.expand(len(pictures), *self.mark.shape))

    def change(self, pictures: Tensor, marks: Tensor) -> Tensor:
        """What hides marks in pictures, in pixel values, [B, 3, H, W]."""
        mark = 2 * stretched(marks, pictures) - 1
        return 127.5 * (self.unet.change(torch.cat([pictures / 127.5 - 1, mark], 1)) + self.direct(mark))


class Dilated(nn.Module):
    """A residual block of two dilated convolutions with affine instance normalisation."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_normed(channels, channels, dilation=dilation), *_normed(channels, channels, dilation=dilation)[:-1]
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.layers(x))


class Extractor(nn.Module):
    """E of the paper, smaller: three convolutions, three residual blocks at half size (dilation 2, 4, 1), 42 k weights.

    Pictures [B, 3, H, W] in 0..255 to what is hidden in them, [B, 1, H, W] about [0, 1]; it starts around 0.5.
    """

    def __init__(self, width: int = 12):
        super().__init__()
        self.layers = nn.Sequential(
            *_normed(3, width),
            *_normed(width, width),
            *_normed(width, 2 * width, stride=2),
            *(Dilated(2 * width, dilation) for dilation in (2, 4, 1)),
            nn.Upsample(scale_factor=2),
            *_normed(2 * width, width),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        nn.init.constant_(self.layers[-1].bias, BLANK)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures.float() / 127.5 - 1)


def _normed(inside: int, outside: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """Convolution, instance normalisation, ReLU."""
    conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return [conv, nn.InstanceNorm2d(outside, affine=True), nn.ReLU(inplace=True)]
