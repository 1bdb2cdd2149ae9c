"""Where images come from: one dataclass per kind of source, named by a file in conf/data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench import spec
from bench.decoding import decode_all, parquet_images, parquet_schema, parquet_table, read_all
from bench.types import ConfigError, UserError

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class Decoded:
    """Images uint8 [N, 3, H, W] and labels int64 [N] of a training and a test set; class names by label."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: list[str]


@dataclass(frozen=True)
class Data:
    """What every source shares.

    image_size: pixels per side (None: as the files are, which must then agree).
    crop: random crops after padding by so many pixels (0: none); flip: random horizontal flips.
    validation: fraction of the training set held out; attacker: the attacker's fraction of what is left.
    split_seed: fixes the splits for all runs; train_limit, test_limit: use only so many images.
    """

    label: str | None
    image_size: int | None
    crop: int
    flip: bool
    validation: float
    attacker: float
    split_seed: int
    train_limit: int | None
    test_limit: int | None

    # Where the content lies and how it was read: told by its digest already.
    located: ClassVar[tuple[str, ...]] = (
        *("label", "path", "root", "dataset", "image_size"),
        *("train", "test", "image_column", "label_column"),
    )

    def __post_init__(self) -> None:
        for name in ("validation", "attacker"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"data.{name}={getattr(self, name)}: must be in [0, 1)")
        spec.at_least("data.crop", self.crop, 0)
        if self.image_size is not None:
            spec.at_least("data.image_size", self.image_size, 8)

    @property
    def name(self) -> str:
        return self.label or Path(getattr(self, "path", type(self).__name__)).name

    def identity(self, digest: str) -> dict[str, Any]:
        """What a stage hash covers: the content's digest and how it is split and augmented."""
        return {k: v for k, v in asdict(self).items() if k not in self.located} | {"digest": digest}

    def source(self) -> dict[str, Any]:
        """A cheap fingerprint of the files, which decides whether they have to be decoded again."""
        raise NotImplementedError

    def decode(self) -> Decoded:
        raise NotImplementedError

    def picture_source(self) -> dict[str, Any]:
        """`source` of `pictures`."""
        return self.source()

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Training and test pictures, uint8 [H, W, 3], of any sizes: for tasks that ask for no labels.

        From files they come in their own size, whatever image_size says. Raises UserError or ConfigError.
        """
        decoded = self.decode()
        return [*decoded.train.permute(0, 2, 3, 1).numpy()], [*decoded.test.permute(0, 2, 3, 1).numpy()]


@dataclass(frozen=True)
class Digits(Data):
    """The 1,797 grey 8x8 digits that ship with scikit-learn, scaled to RGB; a fixed fifth is the test set."""

    def source(self) -> dict[str, Any]:
        return {"source": "digits", "size": self.image_size}

    def decode(self) -> Decoded:
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = torch.from_numpy(digits.images).float()[:, None] / 16
        size = self.image_size or 32
        big = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear", antialias=False)
        images = (big.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(digits.target).long()
        return _hold_out(images, labels, [str(i) for i in range(10)], fraction=0.2)


@dataclass(frozen=True)
class Torchvision(Data):
    """CIFAR-10 or CIFAR-100, downloaded by torchvision with its checksum into `root`."""

    dataset: str
    root: str

    def __post_init__(self) -> None:
        super().__post_init__()
        spec.choice("data.dataset", self.dataset, ("CIFAR10", "CIFAR100"))

    @property
    def name(self) -> str:
        return self.label or self.dataset.lower()

    def source(self) -> dict[str, Any]:
        return {"source": self.dataset, "size": self.image_size}

    def decode(self) -> Decoded:
        import torchvision

        cls = getattr(torchvision.datasets, self.dataset)
        try:
            train, test = (cls(self.root, train=part, download=True) for part in (True, False))
        except (OSError, RuntimeError) as error:
            why = getattr(error, "reason", None) or error
            raise UserError(
                f"{self.dataset} cannot be had ({type(why).__name__}: {why}): no network? Put {cls.filename} into "
                f"{self.root}, or use local files with data=parquet data.path=..."
            ) from error
        pair = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
        labels = [torch.tensor(part.targets) for part in (train, test)]
        return Decoded(
            _resized(pair[0], self.image_size),
            labels[0],
            _resized(pair[1], self.image_size),
            labels[1],
            train.classes,
        )


@dataclass(frozen=True)
class ImageFolder(Data):
    """Class folders: path/{train,test|val|validation}/<class>/* or path/<class>/* with `test` of them held out."""

    path: str
    test: float

    def _roots(self) -> tuple[Path, Path | None]:
        root = _existing(self.path, "data.path")
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
        return {"source": "imagefolder", "size": self.image_size, "test": self.test, "files": _stamp(files)}

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
            return _hold_out(*train, classes, self.test)
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
        return {"source": "imagefolder", "test": self.test, "files": _stamp([*train, *(test or [])])}

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        train, test = (
            None if files is None else read_all([p.read_bytes for p in files], [str(p) for p in files], None)
            for files in self._picture_files()
        )
        return _apart(train, self.test) if test is None else (train, test)


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
        root = _existing(self.path, "data.path")
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
        return {"source": "parquet", "train": _stamp(train), "test": _stamp(test), **columns}

    def _pick(self, schema: Any, option: str, candidates: list[str]) -> str:
        wanted = getattr(self, option)
        found = wanted or next((c for c in candidates if c in schema.names), None)
        if found is None or found not in schema.names:
            what = f"column {wanted!r}" if wanted else f"{option.split('_')[0]} column"
            near = spec.near(self.image_column or self.label_column or "", schema.names)
            raise ConfigError(f"data.{option}: no {what} in {self.path}; {near}")
        return found

    def _image_column(self, schema: Any) -> str:
        structs = [f.name for f in schema if str(f.type).startswith(("struct<bytes", "binary"))]
        return self._pick(schema, "image_column", structs)

    def _label_column(self, schema: Any) -> str:
        return self._pick(schema, "label_column", ["label", "labels", "fine_label", "target", "class"])

    def decode(self) -> Decoded:
        def part(files: list[Path]) -> tuple[Tensor, list]:
            table = parquet_table(files, [image, label])
            return decode_all(*parquet_images(files, table[image]), self.image_size), table[label].to_pylist()

        train_files, test_files = self._files()
        schema = parquet_schema(train_files[0])
        image, label = self._image_column(schema), self._label_column(schema)
        images, values = part(train_files)
        classes = _class_names(schema, label) or list(map(str, sorted(set(values))))
        index = _label_index(values, classes, label)
        if not test_files:
            return _hold_out(images, index(values), classes, 0.2)
        test_images, test_values = part(test_files)
        return Decoded(images, index(values), test_images, index(test_values), classes)

    def picture_source(self) -> dict[str, Any]:
        train, test = self._files(unlabelled=True)
        return {"source": "parquet", "train": _stamp(train), "test": _stamp(test), "image": self.image_column}

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        train_files, test_files = self._files(unlabelled=True)
        image = self._image_column(parquet_schema(train_files[0]))
        train, test = (
            read_all(*parquet_images(files, parquet_table(files, [image])[image]), None) if files else None
            for files in (train_files, test_files)
        )
        return _apart(train, 0.2) if test is None else (train, test)


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


def _existing(path: str, key: str) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"{key}={path}: no such folder (looked in {Path.cwd()})")
    return root


def _stamp(files: list[Path]) -> str:
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[-1] == images.shape[-2] == size:
        return images
    parts = [
        torch.nn.functional.interpolate(p.float(), size=(size, size), mode="bilinear", antialias=True)
        for p in images.split(1024)
    ]
    return torch.cat([p.clamp(0, 255).round().to(torch.uint8) for p in parts])


def _order(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Positions of the test and the training images, where a fraction is held out."""
    test, train = torch.from_numpy(np.random.default_rng(0).permutation(count)).tensor_split([round(count * fraction)])
    return test, train


def _apart(pictures: list[np.ndarray], fraction: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and test pictures, a fraction held out."""
    test, train = _order(len(pictures), fraction)
    return [pictures[i] for i in train], [pictures[i] for i in test]


def _hold_out(images: Tensor, labels: Tensor, classes: list[str], fraction: float) -> Decoded:
    test, train = _order(len(images), fraction)
    return Decoded(images[train], labels[train], images[test], labels[test], classes)
