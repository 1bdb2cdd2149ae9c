"""Encoded images, in files or in parquet's cells, to arrays."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import machine
from bench.errors import ConfigError, UserError

NAMED = 10  # files in an error: of more the number
# Pillow has readers that start other programs (EPS): those of IMAGE_FILES, whatever a file is called.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")


def parquet_schema(file: Path) -> Any:
    """A parquet file's schema. Raises UserError for a file that is none."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is no parquet file: {str(error).splitlines()[0]}") from error


def parquet_table(files: list[Path], columns: list[str]) -> Any:
    """Columns of several files as one table. Raises UserError for what cannot be read."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return pyarrow.concat_tables([pq.read_table(f, columns=columns) for f in files])
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{files[0]}: {str(error).splitlines()[0]}") from error


def parquet_images(files: list[Path], column: Any) -> tuple[list[Callable[[], bytes]], list[str]]:
    """A column's encoded images, and what each is called in an error."""
    raw = [cell["bytes"] if isinstance(cell, dict) else cell for cell in column.to_pylist()]
    if None in raw:
        at = f"{files[0].parent}, row {raw.index(None)}"
        raise UserError(f"{at} holds no bytes of an image (a path, or nothing): write the images into the parquet")
    return [lambda b=b: b for b in raw], [f"{files[0].parent}, row {i}" for i in range(len(raw))]


def _rgb(image: Any) -> Any:
    """A picture of 8 bits a channel. ValueError for numbers whose range nobody knows."""
    from PIL import Image

    # Older versions of Pillow call grey PNGs of 16 bits I.
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
        wide = np.asarray(image).astype(np.float64)
        return Image.fromarray((wide / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "of 32 bits" if image.mode == "I" else "floating-point"
        raise ValueError(f"its pixels are {kind} numbers, of an unknown range; save it with 8 bits")
    return image.convert("RGB")


def read_all(reads: list[Callable[[], bytes]], names: list[str], size: int | None) -> list[np.ndarray]:
    """Encoded images to uint8 [H, W, 3]: RGB; with `size`, shorter side resized, then cropped centrally. They are
    turned as their EXIF says; grey of 16 bits is scaled to 8; what shines through a transparent one is its own colour;
    of several frames the first counts.

    Raises UserError that names those that cannot be read: all are looked at first.
    """
    from PIL import Image, ImageOps

    def one(item: tuple[Callable[[], bytes], str]) -> np.ndarray | str:
        read, name = item
        try:
            image = _rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(read()), formats=FORMATS)))
        except Exception as error:
            return f"{name} is not a readable image: {' '.join(str(error).split())}"
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    if size is not None:
        machine.afford(3 * len(reads) * size**2, f"{len(reads):,} images of {size} pixels", "data.image_size")
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(one, zip(reads, names, strict=True)))
    broken = [i for i, image in enumerate(found) if isinstance(image, str)]
    if not broken:
        return found
    others = [names[i] for i in broken[1:NAMED]]
    more = [f"{len(broken) - NAMED:,} more"] if len(broken) > NAMED else []
    raise UserError(f"{found[broken[0]]}{'; nor are ' if others else ''}{', '.join([*others, *more])}")


def decode_all(reads: list[Callable[[], bytes]], names: list[str], size: int | None) -> Tensor:
    """Encoded images to uint8 [N, 3, H, W], see `read_all`. Raises ConfigError where they differ in size."""
    arrays = read_all(reads, names, size)
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1 or next(iter(shapes))[0] != next(iter(shapes))[1]:
        raise ConfigError("the images are not all of one square size: set data.image_size=32 (or another)")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
