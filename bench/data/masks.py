"""Pictures with a class for each pixel -> uint8 tensors, decoded once and cached like images; pairs drawn together."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.data.images import augment, channels, on_device
from bench.data.source import Data, shuffled, split_indices
from bench.errors import ConfigError, UserError, within
from bench.progress import Say, silent
from bench.store.cache import Cache, Entry, cached

VOID = 255  # what masks have where no class is: in no loss, in no utility
FILE = "masks.safetensors"


@dataclass(frozen=True)
class Masked(Data):
    """Base of sources of pictures with masks.

    image_size: the longer side; what is not of one shape goes into a square of that side, the rest of it void.
    block: so many pictures in a row, frames of a video say, go to owner, attacker or validation together.
    """

    block: int = within(1)

    located: ClassVar[tuple[str, ...]] = (
        *Data.located,
        *("mask_column", "classes", "void", "year", "download", "tests", "seed"),
    )

    def source(self) -> dict[str, Any]:
        raise ConfigError(f"data={type(self).__name__.lower()} has masks, not labels: it is for task=segmentation")

    def mask_source(self) -> dict[str, Any]:
        raise NotImplementedError

    def masked(self) -> Segmented:
        raise NotImplementedError


@dataclass(frozen=True)
class Segmented:
    """Pictures uint8 [N, 3, H, W] and masks uint8 [N, H, W] (a class, or VOID) of a training and a test set."""

    train: Tensor
    train_masks: Tensor
    test: Tensor
    test_masks: Tensor
    classes: list[str]


@dataclass(frozen=True)
class Pair:
    """An encoded picture and its mask, read when they are asked for, and what an error calls them."""

    picture: Callable[[], bytes]
    mask: Callable[[], bytes]
    name: str


def open_masks(data: Data, cache: Cache, say: Say = silent) -> Entry:
    """Decode a source into the cache, or find it there; `resident` reads it. Raises UserError or ConfigError for what
    the files lack."""

    def build(folder: Path) -> dict[str, Any]:
        found = data.masked()
        tensors = {name: value for name, value in vars(found).items() if name != "classes"}
        checked(tensors, len(found.classes), data.name)
        save_file(tensors, folder / FILE)
        mean, std = channels(found.train)
        facts = {"train": len(found.train), "test": len(found.test), "sides": [*found.train.shape[2:]]}
        return {"classes": found.classes, **facts, "mean": mean, "std": std}

    entry = cached(cache, "masks", data.mask_source(), build, say)
    if entry.built:
        height, width = entry["sides"]
        say(f"data: decoded {entry['train']:,} + {entry['test']:,} masks of {data.name}, {width}x{height}")
    return entry


def digest(entry: Entry) -> str:
    """Of a decoded set's content: wherever its files were."""
    return entry.meta["sha256"][FILE]


def resident(entry: Entry, device: torch.device) -> dict[str, Tensor]:
    """train, train_masks, test, test_masks on the device."""
    return on_device(entry, FILE, device)


def checked(tensors: dict[str, Tensor], classes: int, name: str) -> None:
    """Raises UserError for pictures and masks of different sides, and for masks with classes that there are not."""
    for part in ("train", "test"):
        pictures, masks = tensors[part], tensors[f"{part}_masks"]
        if pictures.shape[2:] != tensors["train"].shape[2:] or masks.shape != (len(pictures), *pictures.shape[2:]):
            raise UserError(f"{name}: pictures {tuple(pictures.shape)} and masks {tuple(masks.shape)} do not fit")
        wrong = (masks != VOID) & (masks >= classes)
        if bool(wrong.any()):
            row, value = int(wrong.flatten(1).any(1).nonzero()[0]), int(masks[wrong][0])
            raise UserError(
                f"{name}: mask {row} of {part} has class {value}, and there are {classes} (0 to {classes - 1}): "
                "name more in data.classes, or say which is void with data.void"
            )


def splits(data: Masked, n_train: int, n_test: int) -> dict[str, Tensor]:
    """As split_indices, by whole blocks of the training set."""
    limit = data.train_limit and max(1, data.train_limit // data.block)
    blocks = split_indices(replace(data, train_limit=limit), -(-n_train // data.block), n_test)
    found = {"test": blocks.pop("test")}
    for name, index in blocks.items():
        each = (index[:, None] * data.block + torch.arange(data.block)).flatten()
        found[name] = each[each < n_train]
    return found


def batches(
    pictures: Tensor, masks: Tensor, index: Tensor, size: int, seed: int | None, crop: int = 0, flip: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """(pictures uint8 [B, 3, H, W], masks uint8 [B, H, W]) on the device that holds them; as images.batches, each
    picture moved together with its mask, which is void where the picture was padded."""
    if seed is None:
        for part in index.split(size):
            yield pictures[part], masks[part]
        return
    for part, rng in shuffled(index, size, seed, pictures.device):
        both = torch.cat([pictures[part], (masks[part] + 1)[:, None]], 1)  # VOID is 0 there, as padding is
        both = augment(both, crop, flip, rng)
        yield both[:, :3], both[:, 3] - 1


# Decoding


def read_pairs(
    pairs: list[Pair], size: int | None, table: np.ndarray | None = None, square: bool = False
) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, H, W] and masks [N, H, W]: the longer side `size` (None: as they are), the picture resized by
    Lanczos, the mask to the nearest. `square`: into a square, top left, what is left over black and void. table [256]:
    what becomes of a mask's values. Raises UserError for a mask that cannot be read, has another size than its picture
    or is coloured, and for shapes that differ."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda pair: _read(pair, size, table, square), pairs))
    shapes = {mask.shape for _, mask in found}
    if len(shapes) > 1:
        (h, w), (y, x) = sorted(shapes)[:2]
        raise UserError(f"the pictures are not all of one shape ({w}x{h}, {x}x{y}): set data.image_size")
    pictures, masks = (np.stack(part) for part in zip(*found, strict=True))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks)


def uneven(pairs: list[Pair]) -> bool:
    """Whether pictures are of different proportions: what one size does not bring to one shape."""
    from PIL import Image

    def sides(pair: Pair) -> tuple[int, int]:
        try:
            return Image.open(io.BytesIO(pair.mask())).size  # the smaller file; sides are compared later
        except Exception as error:
            raise UserError(f"{pair.name} has no readable mask: {error}") from error

    return len({sides(pair) for pair in pairs}) > 1


def _read(pair: Pair, size: int | None, table: np.ndarray | None, square: bool) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(pair.picture())).convert("RGB")
        mask = Image.open(io.BytesIO(pair.mask()))
        values = np.asarray(mask)
    except Exception as error:
        raise UserError(f"{pair.name} is not a readable image with a mask: {error}") from error
    if picture.size != mask.size:
        sizes = ["x".join(map(str, image.size)) for image in (picture, mask)]
        raise UserError(f"{pair.name}: the picture is {sizes[0]} and its mask {sizes[1]}")
    if values.ndim != 2 or values.min() < 0 or values.max() > 255:
        raise UserError(f"{pair.name}: the mask ({mask.mode}) has no numbers of classes from 0 to 255, one a pixel")
    values = values.astype(np.uint8)
    values = values if table is None else table[values]
    if size is not None:
        scale = size / max(picture.size)
        sides = [max(1, round(scale * side)) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.LANCZOS)
        values = np.asarray(Image.fromarray(values).resize(sides, Image.Resampling.NEAREST))
    pixels = np.asarray(picture)
    if square:
        side = size or max(values.shape)
        room = [(0, side - n) for n in values.shape]
        pixels, values = np.pad(pixels, [*room, (0, 0)]), np.pad(values, room, constant_values=VOID)
    return pixels, values
