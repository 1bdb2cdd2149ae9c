"""What can be done to pictures [B, 3, H, W] in 0..255 before anybody looks for a mark in them: 8-bit in, 8-bit out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bench import spec
from bench.pictures import jpeg, seen
from bench.types import ConfigError

# Kind: least and greatest strength, whether more is weaker, unit.
KINDS = {
    "jpeg": (1, 100),  # quality
    "noise": (0, 255),  # standard deviation
    "blur": (0, 10),  # standard deviation in pixels
    "resize": (0.05, 1),  # factor of each side, bilinear, and back
    "shift": (0, 16),  # pixels to the right, the edge repeated
    "brightness": (-255, 255),  # added
}


def check(option: str, kind: str, strength: float) -> None:
    """Raises ConfigError for a kind that is none, or a strength out of its range."""
    spec.choice(option, kind, ("none", *KINDS))
    if kind != "none" and not KINDS[kind][0] <= strength <= KINDS[kind][1]:
        raise ConfigError(f"{option}={kind}: strength {strength:g} must be from {KINDS[kind][0]} to {KINDS[kind][1]}")


def processed(pictures: Tensor, kind: str, strength: float, seed: int) -> Tensor:
    """Pictures after one of KINDS, same shape and device, rounded; noise is drawn from the seed, always the same."""
    if kind == "none":
        return pictures
    return seen(globals()[f"_{kind}"](pictures, strength, seed))


def _jpeg(pictures: Tensor, quality: float, seed: int) -> Tensor:
    found = torch.stack([jpeg(picture, int(quality)) for picture in pictures.to("cpu", torch.uint8)])
    return found.to(pictures.device, pictures.dtype)


def _noise(pictures: Tensor, sigma: float, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed % 2**63)
    return pictures + sigma * torch.randn(pictures.shape, generator=rng).to(pictures.device)


def _blur(pictures: Tensor, sigma: float, seed: int) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    reach = max(1, round(3 * sigma))
    return gaussian_blur(pictures, [2 * reach + 1] * 2, [sigma] * 2) if sigma else pictures


def _resize(pictures: Tensor, factor: float, seed: int) -> Tensor:
    sides = [max(1, round(factor * side)) for side in pictures.shape[2:]]
    how = {"mode": "bilinear", "antialias": True}
    return functional.interpolate(functional.interpolate(pictures, sides, **how), pictures.shape[2:], **how)


def _shift(pictures: Tensor, pixels: float, seed: int) -> Tensor:
    count = int(pixels)
    padded = functional.pad(pictures, (count, 0, 0, 0), mode="replicate")
    return padded[..., : pictures.shape[-1]]


def _brightness(pictures: Tensor, change: float, seed: int) -> Tensor:
    return pictures + change
