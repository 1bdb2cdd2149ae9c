"""What is done to clean patches: Gaussian noise and rain streaks, drawn from a generator for a whole batch at once.

The generator's device draws, the patches' device computes: a generator on the CPU gives the same pairs everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def noise(clean: Tensor, rng: torch.Generator, sigma: float) -> Tensor:
    """Patches uint8 [B, 3, H, W] plus Gaussian noise of standard deviation sigma (of 255), rounded to 8 bits."""
    drawn = torch.randn(clean.shape, generator=rng, device=rng.device).to(clean.device)
    return _eight_bits(clean + sigma * drawn)


def rain(clean: Tensor, rng: torch.Generator, density: float, length: int, tilt: float, strength: float) -> Tensor:
    """Patches uint8 [B, 3, H, W] with bright streaks added, rounded to 8 bits: O = B + R, as deraining papers have it.

    A streak is a line one pixel wide and `length` pixels long, all of a patch at one angle to the vertical, uniform in
    +-tilt degrees; `density` is the share of pixels at which one has its middle, `strength` its brightness of white.
    The sum is cut at white.
    """
    count, reach = len(clean), length // 2
    height, width = (side + 2 * reach for side in clean.shape[2:])  # streaks reach in from outside
    middles = torch.rand(1, count, height, width, generator=rng, device=rng.device) < density
    angles = torch.rand(count, generator=rng, device=rng.device).mul(2).sub(1).mul(math.radians(tilt))
    lines = streaks(angles.to(clean.device), reach)
    layer = functional.conv2d(middles.to(clean.device, torch.float32), lines[:, None], groups=count)[0]
    return _eight_bits(clean + 255 * strength * layer[:, None])


def streaks(angles: Tensor, reach: int) -> Tensor:
    """Lines through the middle at angles [B] to the vertical (radians), as kernels [B, 2 reach + 1, 2 reach + 1]."""
    offset = torch.arange(-reach, reach + 1, device=angles.device, dtype=torch.float32)
    down, right = offset[:, None], offset[None, :]
    sin, cos = angles.sin()[:, None, None], angles.cos()[:, None, None]
    along, aside = down * cos + right * sin, right * cos - down * sin
    return (1 - aside.abs()).clamp_min(0) * (along.abs() <= reach + 0.5)


def _eight_bits(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
