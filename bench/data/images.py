"""Data sets -> uint8 tensors that are decoded once, cached as one file and live on the device.

`open_images` decodes a source (bench.data.source) or finds it decoded, and tells its content digest, which is what
stage hashes are taken over: where the files lie does not matter, what is in them does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.data.source import Data, counts, shuffled, told
from bench.progress import Say, silent
from bench.store.cache import Cache, Entry, cached

PATCHED = 5000  # images whose patches are looked at: enough for twelve numbers' covariance


@dataclass(frozen=True)
class Images:
    """A decoded data set: its facts; `resident` reads the rest."""

    data: Data
    entry: Entry

    @property
    def digest(self) -> str:
        """Of the decoded content: wherever its files were."""
        return self.entry.meta["sha256"]["images.safetensors"]

    @property
    def identity(self) -> dict[str, Any]:
        return self.data.content(self.digest)


def open_images(data: Data, cache: str | Path | Cache, say: Say = silent) -> Images:
    """Decode a source into the cache, or find it there. Raises UserError or ConfigError for what the files lack."""

    each = ""

    def build(folder: Path) -> dict[str, Any]:
        nonlocal each
        decoded = data.decode()
        if data.counted:
            each = counts(torch.cat([decoded.train_labels, decoded.test_labels]), decoded.classes)
        tensors = {name: value for name, value in vars(decoded).items() if name != "classes"}
        save_file(tensors, folder / "images.safetensors")
        mean, std = channels(decoded.train)
        size = {"image_size": decoded.train.shape[-1], "train": len(decoded.train), "test": len(decoded.test)}
        return {"classes": decoded.classes, **size, "mean": mean, "std": std}

    entry = cached(cache, "data", data.source(), build, say)
    if entry.built:
        found = f"{entry['train']:,} + {entry['test']:,} images of {len(entry['classes'])} classes{each}"
        say(f"data: decoded {found}, {data.name}{told(data.ignored())}")
    return Images(data, entry)


def channels(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation by channel of images [N, C, H, W], in pixel units 0..255; in float64, in parts, for memory."""
    sums = [(p.double().sum((0, 2, 3)), p.double().square().sum((0, 2, 3))) for p in images.split(4096)]
    count = images[:, 0].numel()
    mean = sum(s[0] for s in sums) / count
    std = (sum(s[1] for s in sums) / count - mean**2).clamp_min(1).sqrt()
    return mean.tolist(), std.tolist()


def resident(images: Images, device: torch.device) -> dict[str, Tensor]:
    """train, train_labels, test, test_labels of a decoded data set on the device."""
    return on_device(images.entry, "images.safetensors", device)


def on_device(entry: Entry, name: str, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a decoded set's file, loaded once for all runs of a process. On a CPU they are mapped: processes
    on one machine share the pages. Nothing of ours writes to a published file; who truncates one kills its readers."""
    file = entry.path / name
    return _loaded(file, entry.meta["sha256"][name], file.stat().st_ino, device)


def patch_covariance(images: Images) -> Tensor:
    """Covariance [12, 12], about 0, of the 2x2 patches of the first 5,000 training images, normalised by channel."""
    return _patch_covariance(images.entry.path, images.digest, tuple(images.entry["mean"]), tuple(images.entry["std"]))


@lru_cache(maxsize=4)
def _patch_covariance(folder: Path, digest: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    with safe_open(folder / "images.safetensors", "pt") as file:
        pixels = file.get_slice("train")[:PATCHED].double()
    pixels = (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    patches = pixels.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).flatten(3).flatten(0, 2)
    return patches.T @ patches / len(patches)


# Digest and inode tell a rebuilt one.
@lru_cache(maxsize=4)
def _loaded(file: Path, digest: str, inode: int, device: torch.device) -> dict[str, Tensor]:
    return {k: v.to(device) for k, v in load_file(file).items()}


def augment(images: Tensor, crop: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Random crops of images [B, C, H, W] padded by `crop` pixels, and random flips: one gather for the batch.

    Draws from `rng`, a generator of the images' device; keeps dtype and shape.
    """
    if not crop and not flip:
        return images
    b, c, h, w = images.shape
    device = images.device
    rows = torch.arange(h, device=device).expand(b, h)
    cols = torch.arange(w, device=device).expand(b, w)
    if crop:
        images = torch.nn.functional.pad(images, (crop, crop, crop, crop))
        offsets = torch.randint(0, 2 * crop + 1, (2, b, 1), generator=rng, device=device)
        rows, cols = rows + offsets[0], cols + offsets[1]
    if flip:
        mirrored = torch.rand(b, 1, generator=rng, device=device) < 0.5
        cols = torch.where(mirrored, cols.flip(1), cols)
    batch = torch.arange(b, device=device)[:, None, None, None]
    channel = torch.arange(c, device=device)[None, :, None, None]
    return images[batch, channel, rows[:, None, :, None], cols[:, None, None, :]]


def batches(
    images: Tensor, labels: Tensor, index: Tensor, size: int, seed: int | None, crop: int = 0, flip: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images uint8 [B, 3, H, W], labels [B]) on the device that holds them.

    With a seed: shuffled and augmented by it, and a last batch that is not full is left out (a batch of one
    breaks batch normalisation). Without: in order, complete, untouched.
    """
    if seed is None:
        for part in index.split(size):
            yield images[part], labels[part]
        return
    for part, rng in shuffled(index, size, seed, images.device):
        yield augment(images[part], crop, flip, rng), labels[part]
