"""Masks in files: parquet with an image and a mask column (CamVid), Cityscapes and Pascal VOC by torchvision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.decoding import parquet_images, parquet_schema, parquet_table
from bench.data.masks import VOID, Masked, Pair, Segmented, read_pairs, uneven
from bench.data.source import existing, stamp
from bench.errors import ConfigError, UserError, near, within

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class MaskParquet(Masked):
    """Local parquet files in the Hugging Face layout, a column of images and one of masks, {bytes, path} each.

    classes: names of the masks' values from 0 on; void: the value of pixels without a class. train, test: patterns of
    file names below `path`.
    """

    path: str
    train: str
    test: str
    image_column: str
    mask_column: str
    classes: list[str]
    void: int | None = within(0, 255)

    def _files(self, part: str) -> list[Path]:
        root, pattern = existing(self.path, "data.path"), getattr(self, part)
        files = sorted(p for p in root.rglob("*.parquet") if fnmatch(p.name, pattern))
        if not files:
            raise ConfigError(f"data.path={self.path}: no parquet file matches data.{part}={pattern!r}")
        names = parquet_schema(files[0]).names
        for option in ("image_column", "mask_column"):
            if (column := getattr(self, option)) not in names:
                raise ConfigError(f"data.{option}: no column {column!r} in {self.path}; {near(column, names)}")
        return files

    def mask_source(self) -> dict[str, Any]:
        if len(self.classes) < 2:
            raise ConfigError(f"data.classes={self.classes}: needs two names at least")
        columns = {"image": self.image_column, "mask": self.mask_column, "classes": self.classes, "void": self.void}
        files = {part: stamp(self._files(part)) for part in ("train", "test")}
        return {"source": "mask parquet", **files, **columns, "size": self.image_size}

    def masked(self) -> Segmented:
        return together(*(self._pairs(part) for part in ("train", "test")), self.image_size, self.classes, self.void)

    def _pairs(self, part: str) -> list[Pair]:
        files = self._files(part)
        table = parquet_table(files, [self.image_column, self.mask_column])
        columns = [table[name] for name in (self.image_column, self.mask_column)]
        for name, column in zip((self.image_column, self.mask_column), columns, strict=True):
            kind = str(column.type)
            if not kind.startswith(("struct<bytes", "binary", "large_binary")):
                raise ConfigError(f"data: column {name!r} of {files[0].name} holds {kind}, no encoded images")
            if column.null_count:
                raise UserError(f"{files[0].parent}: {column.null_count} rows of {part} have no {name}")
        (pictures, names), (masks, _) = (parquet_images(files, column) for column in columns)
        return [Pair(*each) for each in zip(pictures, masks, names, strict=True)]


@dataclass(frozen=True)
class Cityscapes(Masked):
    """Cityscapes as its site hands it out (leftImg8bit and gtFine below `path`): the 19 classes that are scored; its
    validation set, whose masks are public, is the test set."""

    path: str

    def _sets(self) -> Iterable[Any]:
        from torchvision.datasets import Cityscapes as Loader

        existing(self.path, "data.path")
        try:
            return [Loader(self.path, split, mode="fine", target_type="semantic") for split in ("train", "val")]
        except RuntimeError as error:
            raise ConfigError(
                f"data.path={self.path} holds no leftImg8bit/train, gtFine/train and the same of val: "
                "Cityscapes needs an account at cityscapes-dataset.com"
            ) from error

    def mask_source(self) -> dict[str, Any]:
        files = [[Path(p) for p in (*each.images, *(t[0] for t in each.targets))] for each in self._sets()]
        return {"source": "cityscapes", "train": stamp(files[0]), "test": stamp(files[1]), "size": self.image_size}

    def masked(self) -> Segmented:
        sets = self._sets()
        kinds = [c for c in sets[0].classes if c.id >= 0]
        table = np.full(256, VOID, np.uint8)
        for c in kinds:
            table[c.id] = VOID if c.ignore_in_eval else c.train_id
        scored = sorted((c for c in kinds if not c.ignore_in_eval), key=lambda c: c.train_id)
        pairs = [[paired(p, t[0]) for p, t in zip(each.images, each.targets, strict=True)] for each in sets]
        return together(*pairs, self.image_size, [c.name for c in scored], None, table)


@dataclass(frozen=True)
class Voc(Masked):
    """Pascal VOC's segmentations, 21 classes with the background, borders void; its validation set is the test set.

    path: the folder that VOCdevkit is in; download: by torchvision, 2 GB, if it is not there.
    """

    path: str
    year: str
    download: bool

    def _sets(self) -> Iterable[Any]:
        from torchvision.datasets import VOCSegmentation as Loader

        try:
            return [Loader(self.path, self.year, part, self.download) for part in ("train", "val")]
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigError(
                f"data.path={self.path} holds no VOCdevkit/VOC{self.year} with segmentations "
                f"({str(error).splitlines()[0]}): data.download=true fetches it"
            ) from error

    def mask_source(self) -> dict[str, Any]:
        files = [[Path(p) for p in (*each.images, *each.targets)] for each in self._sets()]
        return {"source": "voc", "train": stamp(files[0]), "test": stamp(files[1]), "size": self.image_size}

    def masked(self) -> Segmented:
        pairs = [[paired(p, t) for p, t in zip(each.images, each.targets, strict=True)] for each in self._sets()]
        return together(*pairs, self.image_size, list(VOC), VOID)


def paired(picture: str, mask: str) -> Pair:
    return Pair(Path(picture).read_bytes, Path(mask).read_bytes, picture)


def together(
    train: list[Pair],
    test: list[Pair],
    size: int | None,
    classes: list[str],
    void: int | None,
    table: np.ndarray | None = None,
) -> Segmented:
    """Both sets decoded to one shape; masks' values by `table` [256], or as they are with `void` for none."""
    if table is None:
        table = np.arange(256, dtype=np.uint8)
        table[VOID if void is None else void] = VOID
    square = uneven([*train, *test])
    parts = [read_pairs(each, size, table, square) for each in (train, test)]
    return Segmented(*parts[0], *parts[1], classes)
