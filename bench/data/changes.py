"""What can be done to pictures [B, 3, H, W] in 0..255 before anybody looks for a mark in them: 8-bit in, 8-bit out."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional

from bench import spec
from bench.data.pixels import jpeg, seen
from bench.errors import ConfigError, choice

# Least and greatest strength of each kind.
KINDS = {
    "jpeg": (1, 100),  # quality
    "noise": (0, 255),  # standard deviation
    "blur": (0, 10),  # standard deviation in pixels
    "resize": (0.05, 1),  # factor of each side, bilinear, and back
    "shift": (0, 16),  # pixels to the right, the edge repeated
    "brightness": (-255, 255),  # added
    "flip": (0, 1),  # left to right, or not
    "depth": (1, 8),  # bits that a channel keeps, rounded to the nearest of so many levels
    "median": (1, 15),  # pixels along a side of the window, the edge repeated
}


def check(option: str, kind: str, strength: float) -> None:
    """Raises ConfigError for a kind that is none, or a strength out of its range."""
    choice(option, kind, ("none", *KINDS))
    if kind != "none" and not KINDS[kind][0] <= strength <= KINDS[kind][1]:
        raise ConfigError(f"{option}={kind}: strength {strength:g} must be from {KINDS[kind][0]} to {KINDS[kind][1]}")
    if kind in ("jpeg", "shift", "flip", "depth", "median") and strength != int(strength):
        raise ConfigError(f"{option}={kind}: strength {strength:g} must be a whole number")
    if kind == "median" and strength % 2 == 0:
        raise ConfigError(f"{option}={kind}: strength {strength:g} must be odd: a window has a middle")


def processed(pictures: Tensor, kind: str, strength: float, seed: int | None) -> Tensor:
    """Pictures after one of KINDS, same shape and device, rounded.

    Noise: with a seed a picture always gets the same, whatever batch it is in; without, torch's generator draws anew.
    """
    if kind == "none":
        return pictures
    return seen(globals()[f"_{kind}"](pictures, strength, seed))


def _jpeg(pictures: Tensor, quality: float, seed: int | None) -> Tensor:
    found = torch.stack([jpeg(picture, int(quality)) for picture in pictures.to("cpu", torch.uint8)])
    return found.to(pictures.device, pictures.dtype)


def _noise(pictures: Tensor, sigma: float, seed: int | None) -> Tensor:
    if seed is None:
        return pictures + sigma * torch.randn_like(pictures)
    drawn = []
    for picture in pictures.to("cpu", torch.uint8):
        content = hashlib.sha256(picture.numpy().tobytes()).hexdigest()
        rng = torch.Generator().manual_seed(spec.derive(seed, content))
        drawn.append(torch.randn(picture.shape, generator=rng))
    return pictures + sigma * torch.stack(drawn).to(pictures.device)


def _blur(pictures: Tensor, sigma: float, seed: int | None) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    reach = min(max(1, round(3 * sigma)), min(pictures.shape[2:]) - 1)  # what can be reflected at the edge
    return gaussian_blur(pictures, [2 * reach + 1] * 2, [sigma] * 2) if sigma else pictures


def _resize(pictures: Tensor, factor: float, seed: int | None) -> Tensor:
    sides = [max(1, round(factor * side)) for side in pictures.shape[2:]]
    how = {"mode": "bilinear", "antialias": True}
    return functional.interpolate(functional.interpolate(pictures, sides, **how), pictures.shape[2:], **how)


def _shift(pictures: Tensor, pixels: float, seed: int | None) -> Tensor:
    return functional.pad(pictures, (int(pixels), 0, 0, 0), mode="replicate")[..., : pictures.shape[-1]]


def _brightness(pictures: Tensor, change: float, seed: int | None) -> Tensor:
    return pictures + change


def _flip(pictures: Tensor, flips: float, seed: int | None) -> Tensor:
    return pictures.flip(3) if flips else pictures


def _depth(pictures: Tensor, bits: float, seed: int | None) -> Tensor:
    """Feature squeezing (Xu et al., NDSS 2018)."""
    step = 255 / (2 ** int(bits) - 1)
    return (pictures / step).round() * step


def _median(pictures: Tensor, side: float, seed: int | None) -> Tensor:
    side, (height, width) = int(side), pictures.shape[2:]
    padded = functional.pad(pictures.float(), [side // 2] * 4, mode="replicate")
    windows = functional.unfold(padded, side).unflatten(1, (pictures.shape[1], side * side))
    return windows.median(2).values.unflatten(2, (height, width))
