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
from bench.errors import ConfigError, UserError, near, within

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


# What file managers, notebooks and archives leave in folders: no class, no picture.
LEFT = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


def _odd(name: str) -> bool:
    return name.startswith(".") or name in LEFT


def _below(path: Path, root: Path) -> bool:
    """Whether a folder that is left out lies between."""
    return any(map(_odd, path.relative_to(root).parts[:-1]))


def _image(path: Path) -> bool:
    """Whether it is a picture by its name, and a regular file: a pipe would be waited for."""
    return path.suffix.lower() in IMAGE_FILES and path.is_file()


def _images(root: Path) -> list[Path]:
    return [p for p in sorted(root.rglob("*")) if not (_odd(p.name) or _below(p, root)) and _image(p)]


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not _odd(p.name))


@dataclass(frozen=True)
class ImageFolder(Data):
    """Class folders: path/{train,test|val|validation}/<class>/* or path/<class>/* with `test` of them held out."""

    path: str
    test: float = within(0, 1, ends="()")

    def _roots(self, labelled: bool = True) -> tuple[Path, Path | None]:
        """Those of training and test images. A folder `train` of class folders is a split; one of images is, where
        there are labels, a class of that name."""
        root = existing(self.path, "data.path")
        if not (root / "train").is_dir() or (labelled and not _folders(root / "train")):
            return root, None
        tests = [root / name for name in ("test", "val", "validation") if (root / name).is_dir()]
        return root / "train", (tests[0] if tests else None)

    def _files(self, root: Path) -> tuple[list[Path], list[str]]:
        """Images, and the classes that their folders name."""
        found = {p.name: _images(p) for p in _folders(root)}
        if len(found) == 1 and any(found.values()):
            alone = f"one class folder, {next(iter(found))!r}"
            raise ConfigError(f"{root} holds {alone}: whatever a network says is right; a folder a class, two at least")
        if not any(found.values()):
            raise ConfigError(f"{root} holds no class folders with images ({', '.join(IMAGE_FILES)})")
        if empty := [name for name, files in found.items() if not files]:
            raise ConfigError(f"{root / empty[0]} holds no images ({', '.join(IMAGE_FILES)}): remove the folder")
        return [p for files in found.values() for p in files], [*found]

    def ignored(self) -> list[Path]:
        root = existing(self.path, "data.path")
        return [
            p
            for p in sorted(root.rglob("*"))
            if not _below(p, root) and (_odd(p.name) or not (p.is_dir() or _image(p)))
        ]

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
        train_root, test_root = self._roots(labelled=False)
        found = [_images(root) if root else None for root in (train_root, test_root)]
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
        return self._pick(schema, "image_column", [f.name for f in schema if _encoded(f.type)])

    def decode(self) -> Decoded:
        def part(files: list[Path]) -> tuple[Tensor, list]:
            table = parquet_table(files, [image, label])
            return decode_all(*parquet_images(files, table[image]), self.image_size), table[label].to_pylist()

        train_files, test_files = self._files()
        schema = parquet_schema(train_files[0])
        image = self._image_column(schema)
        label = self._pick(schema, "label_column", ["label", "labels", "fine_label", "target", "class"])
        images, values = part(train_files)
        classes = _class_names(schema, label) or values_of(values)
        index = label_index(values, classes, label)
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


def _encoded(kind: Any) -> bool:
    """Whether a column's type is that of encoded images: bytes of any length, or a struct that has some as `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _encoded(kind.field(at).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _class_names(schema: Any, label: str) -> list[str] | None:
    """ClassLabel names that Hugging Face's datasets writes into the schema's metadata."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return list(map(str, info["info"]["features"][label]["names"]))
    except (KeyError, ValueError, TypeError):
        return None


def values_of(labels: list) -> list[str]:
    """The labels that there are, in order; what is none of them is for `label_index` to refuse."""
    return list(map(str, sorted({v for v in labels if isinstance(v, (int, str))}, key=lambda v: (str(type(v)), v))))


def label_index(values: list, classes: list[str], label: str) -> Callable[[list], Tensor]:
    """Labels to int64: as they are where they already index the names, else by name."""
    strange = next((v for v in values if v is None or isinstance(v, (list, dict))), 0)
    if strange != 0:
        what = "nothing" if strange is None else "several values"
        raise UserError(f"column {label!r} holds {what} in row {values.index(strange)}: a label an image")
    if len({*values}) < 2:
        raise ConfigError(f"column {label!r} holds one class alone, {values[0]!r}: whatever a network says is right")
    indexing = all(isinstance(v, int) for v in values) and min(values) >= 0 and max(values) < len(classes)
    place: dict[Any, int] = {i if indexing else name: i for i, name in enumerate(classes)}

    def index(values: list) -> Tensor:
        try:
            return torch.tensor([place[v if indexing else str(v)] for v in values])
        except KeyError as error:
            known = f"none of the {len(classes)} classes of the training set"
            raise UserError(f"label {error} in column {label!r} is {known} (-1 is often: unlabelled)") from error

    return index
