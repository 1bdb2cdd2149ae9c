"""Pictures of any sizes as one vector of pixels that lives on the device; patches of them by one gather."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.data.images import on_device
from bench.data.pixels import jpeg
from bench.data.source import Data, told
from bench.progress import Say
from bench.store.cache import Cache, Entry, cached


@dataclass(frozen=True)
class Pictures:
    """A decoded set of pictures, training ones before test ones.

    pixels: uint8 [total], each picture as [3, H, W]; sizes [N, 2] of (H, W); starts [N]: where each begins.
    """

    pixels: Tensor
    sizes: Tensor
    starts: Tensor

    def patches(self, which: Tensor, top: Tensor, left: Tensor, side: int, mirrored: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, side, side]: of picture which[b] the square whose corner is (top[b], left[b]).

        All [B], on the pixels' device; mirrored [B] of bool: those are flipped left to right.
        """
        device = self.pixels.device
        height, width = self.sizes[which].unbind(1)
        across = torch.arange(side, device=device).expand(len(which), side)
        if mirrored is not None:
            across = torch.where(mirrored[:, None], across.flip(1), across)
        rows = (top[:, None] + torch.arange(side, device=device)) * width[:, None]
        channels = torch.arange(3, device=device) * (height * width)[:, None]
        start = self.starts[which][:, None, None, None]
        at = start + channels[:, :, None, None] + rows[:, None, :, None] + (left[:, None] + across)[:, None, None, :]
        return self.pixels[at]


def open_pictures(data: Data, cache: Cache, say: Say) -> Entry:
    """As images.open_images for images of one size. Raises UserError or ConfigError for what the files lack.

    The entry says how many are training and test pictures; `resident` reads them.
    """

    def build(folder: Path) -> dict[str, Any]:
        train, test = data.pictures()
        planes = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in [*train, *test]]
        save(folder, torch.cat([p.reshape(-1) for p in planes]), torch.tensor([p.shape[1:] for p in planes]))
        return {"train": len(train), "test": len(test)}

    entry = cached(cache, "pictures", data.picture_source(), build, say)
    if entry.built:
        say(f"data: decoded {entry['train']:,} + {entry['test']:,} pictures of {data.name}{told(data.ignored())}")
    return entry


def compressed(entry: Entry, quality: int, cache: Cache, say: Say) -> Entry:
    """The same pictures after JPEG at a quality, each compressed once and whole; in the cache."""
    from PIL import features

    def build(folder: Path) -> dict[str, Any]:
        whole = resident(entry, torch.device("cpu"))
        parts = []
        for start, (height, width) in zip(whole.starts.tolist(), whole.sizes.tolist(), strict=True):
            plane = whole.pixels[start : start + 3 * height * width].view(3, height, width)
            parts.append(jpeg(plane, quality).reshape(-1))
        save(folder, torch.cat(parts), whole.sizes)
        return {"train": entry["train"], "test": entry["test"]}

    # Libraries round differently: what they made is told by its digest, and made again by another one.
    library = f"{features.version('jpg')} {features.version('libjpeg_turbo')}"
    return cached(cache, "jpeg", {"pictures": digest(entry), "quality": quality, "library": library}, build, say)


def save(folder: Path, pixels: Tensor, sizes: Tensor) -> None:
    save_file({"pixels": pixels, "sizes": sizes.long()}, folder / "pictures.safetensors")


def digest(entry: Entry) -> str:
    """Of a decoded set's content: wherever its files were."""
    return entry.meta["sha256"]["pictures.safetensors"]


def resident(entry: Entry, device: torch.device) -> Pictures:
    """A decoded set on the device, shared by all runs of a process."""
    found = on_device(entry, "pictures.safetensors", device)
    ends = (3 * found["sizes"].prod(1)).cumsum(0)
    return Pictures(found["pixels"], found["sizes"], torch.cat([ends.new_zeros(1), ends[:-1]]))
