"""Images in files: class folders, and parquet in the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.decoding import decode_all, parquet_images, parquet_schema, parquet_table, read_all
from bench.data.source import Data, Decoded, apart, existing, hold_out, stamp
from bench.errors import ConfigError, UserError, near

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFolder(Data):
    """Class folders: path/{train,test|val|validation}/<class>/* or path/<class>/* with `test` of them held out."""

    path: str
    test: float

    def _roots(self) -> tuple[Path, Path | None]:
        root = existing(self.path, "data.path")
        if not (root / "train").is_dir():
            return root, None
        tests = [root / name for name in ("test", "val", "validation") if (root / name).is_dir()]
        return root / "train", (tests[0] if tests else None)

    def _files(self, root: Path) -> tuple[list[Path], list[str]]:
        classes = sorted(p.name for p in root.iterdir() if p.is_dir())
        files = [p for c in classes for p in sorted((root / c).rglob("*")) if p.suffix.lower() in IMAGE_FILES]
        if len(classes) < 2 or not files:
            raise ConfigError(f"{root} holds no class folders with images ({', '.join(IMAGE_FILES)})")
        return files, classes

    def source(self) -> dict[str, Any]:
        files = [p for root in self._roots() if root for p in self._files(root)[0]]
        return {"source": "imagefolder", "size": self.image_size, "test": self.test, "files": stamp(files)}

    def decode(self) -> Decoded:
        train_root, test_root = self._roots()
        files, classes = self._files(train_root)

        def part(files: list[Path], root: Path) -> tuple[Tensor, Tensor]:
            names = [p.relative_to(root).parts[0] for p in files]
            if strange := sorted(set(names) - set(classes)):
                raise ConfigError(f"{root}: class {strange[0]!r} is not in the training set")
            images = decode_all([p.read_bytes for p in files], [str(p) for p in files], self.image_size)
            return images, torch.tensor([classes.index(n) for n in names])

        train = part(files, train_root)
        if test_root is None:
            return hold_out(*train, classes, self.test)
        return Decoded(*train, *part(self._files(test_root)[0], test_root), classes)

    def _picture_files(self) -> tuple[list[Path], list[Path] | None]:
        """Files in any folders below the roots; None where no folder of test pictures is."""
        train_root, test_root = self._roots()
        found = [
            sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_FILES) if root else None
            for root in (train_root, test_root)
        ]
        if not found[0] or found[1] == []:
            raise ConfigError(f"{test_root if found[0] else train_root} holds no images ({', '.join(IMAGE_FILES)})")
        return found[0], found[1]

    def picture_source(self) -> dict[str, Any]:
        train, test = self._picture_files()
        return {"source": "imagefolder", "test": self.test, "files": stamp([*train, *(test or [])])}

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        train, test = (
            None if files is None else read_all([p.read_bytes for p in files], [str(p) for p in files], None)
            for files in self._picture_files()
        )
        return apart(train, self.test) if test is None else (train, test)


@dataclass(frozen=True)
class Parquet(Data):
    """Local parquet files in the Hugging Face layout: an image column {bytes, path}, a label column.

    `train` and `test` are patterns of file names or paths below `path`; where nothing matches the default of `test`,
    `validation*` files are, else a fifth of the training set is held out.
    Column names are found when None. Class names come from the metadata, else they are the values.
    """

    path: str
    train: str
    test: str
    image_column: str | None
    label_column: str | None

    def _files(self, unlabelled: bool = False) -> tuple[list[Path], list[Path]]:
        """Those of train and test; `unlabelled` pictures without a train* file (a test set alone) are all to train."""
        root = existing(self.path, "data.path")
        files = sorted(root.rglob("*.parquet"))

        def matching(pattern: str) -> list[Path]:
            return [p for p in files if fnmatch(p.name, pattern) or fnmatch(str(p.relative_to(root)), pattern)]

        train, test = matching(self.train), matching(self.test)
        if unlabelled and files and not train and self.train == "train*":
            return files, []
        if not train or (not test and self.test != "test*"):
            name = "test" if train else "train"
            raise ConfigError(f"data.path={self.path}: no parquet file matches data.{name}={getattr(self, name)!r}")
        test = test or matching("validation*")
        if both := set(train) & set(test):
            raise ConfigError(f"{min(both)} matches both data.train and data.test: train and test must be apart")
        return train, test

    def source(self) -> dict[str, Any]:
        train, test = self._files()
        columns = {"image": self.image_column, "label": self.label_column, "size": self.image_size}
        return {"source": "parquet", "train": stamp(train), "test": stamp(test), **columns}

    def _pick(self, schema: Any, option: str, candidates: list[str]) -> str:
        wanted = getattr(self, option)
        found = wanted or next((c for c in candidates if c in schema.names), None)
        if found is None or found not in schema.names:
            what = f"column {wanted!r}" if wanted else f"{option.split('_')[0]} column"
            offer = near(self.image_column or self.label_column or "", schema.names)
            raise ConfigError(f"data.{option}: no {what} in {self.path}; {offer}")
        return found

    def _image_column(self, schema: Any) -> str:
        structs = [f.name for f in schema if str(f.type).startswith(("struct<bytes", "binary"))]
        return self._pick(schema, "image_column", structs)

    def decode(self) -> Decoded:
        def part(files: list[Path]) -> tuple[Tensor, list]:
            table = parquet_table(files, [image, label])
            return decode_all(*parquet_images(files, table[image]), self.image_size), table[label].to_pylist()

        train_files, test_files = self._files()
        schema = parquet_schema(train_files[0])
        image = self._image_column(schema)
        label = self._pick(schema, "label_column", ["label", "labels", "fine_label", "target", "class"])
        images, values = part(train_files)
        classes = _class_names(schema, label) or list(map(str, sorted(set(values))))
        index = _label_index(values, classes, label)
        if not test_files:
            return hold_out(images, index(values), classes, 0.2)
        test_images, test_values = part(test_files)
        return Decoded(images, index(values), test_images, index(test_values), classes)

    def picture_source(self) -> dict[str, Any]:
        train, test = self._files(unlabelled=True)
        return {"source": "parquet", "train": stamp(train), "test": stamp(test), "image": self.image_column}

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        train_files, test_files = self._files(unlabelled=True)
        image = self._image_column(parquet_schema(train_files[0]))
        train, test = (
            read_all(*parquet_images(files, parquet_table(files, [image])[image]), None) if files else None
            for files in (train_files, test_files)
        )
        return apart(train, 0.2) if test is None else (train, test)


def _class_names(schema: Any, label: str) -> list[str] | None:
    """ClassLabel names that Hugging Face's datasets writes into the schema's metadata."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return list(map(str, info["info"]["features"][label]["names"]))
    except (KeyError, ValueError, TypeError):
        return None


def _label_index(values: list, classes: list[str], label: str) -> Callable[[list], Tensor]:
    """Labels to int64: as they are where they already index the names, else by name."""
    indexing = all(isinstance(v, int) for v in values) and min(values) >= 0 and max(values) < len(classes)
    place: dict[Any, int] = {i if indexing else name: i for i, name in enumerate(classes)}

    def index(values: list) -> Tensor:
        try:
            return torch.tensor([place[v if indexing else str(v)] for v in values])
        except KeyError as error:
            known = f"none of the {len(classes)} classes of the training set"
            raise UserError(f"label {error} in column {label!r} is {known} (-1 is often: unlabelled)") from error

    return index
