"""Where images come from: one dataclass per kind of source, named by a file in conf/data."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench import spec
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
            images = _decode_all([p.read_bytes for p in files], [str(p) for p in files], self.image_size)
            return images, torch.tensor([classes.index(n) for n in names])

        train = part(files, train_root)
        if test_root is None:
            return _hold_out(*train, classes, self.test)
        return Decoded(*train, *part(self._files(test_root)[0], test_root), classes)


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

    def _files(self) -> tuple[list[Path], list[Path]]:
        root = _existing(self.path, "data.path")
        files = sorted(root.rglob("*.parquet"))

        def matching(pattern: str) -> list[Path]:
            return [p for p in files if fnmatch(p.name, pattern) or fnmatch(str(p.relative_to(root)), pattern)]

        train, test = matching(self.train), matching(self.test)
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

    def _columns(self, schema: Any) -> tuple[str, str]:
        def pick(wanted: str | None, option: str, candidates: list[str]) -> str:
            found = wanted or next((c for c in candidates if c in schema.names), None)
            if found is None or found not in schema.names:
                what = f"column {wanted!r}" if wanted else f"{option.split('_')[0]} column"
                raise ConfigError(f"data.{option}: no {what} in {self.path}; {near_columns}")
            return found

        near_columns = spec.near(self.image_column or self.label_column or "", schema.names)
        structs = [f.name for f in schema if str(f.type).startswith(("struct<bytes", "binary"))]
        image = pick(self.image_column, "image_column", structs)
        label = pick(self.label_column, "label_column", ["label", "labels", "fine_label", "target", "class"])
        return image, label

    def decode(self) -> Decoded:
        import pyarrow
        import pyarrow.parquet as pq

        def part(files: list[Path]) -> tuple[Tensor, list]:
            try:
                table = pyarrow.concat_tables([pq.read_table(f, columns=[image, label]) for f in files])
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{files[0]}: {str(error).splitlines()[0]}") from error
            cells = table[image].to_pylist()
            raw = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
            reads = [lambda b=b: b for b in raw]
            names = [f"{files[0].parent}, row {i}" for i in range(len(raw))]
            return _decode_all(reads, names, self.image_size), table[label].to_pylist()

        train_files, test_files = self._files()
        try:
            schema = pq.read_schema(train_files[0])
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{train_files[0]} is no parquet file: {str(error).splitlines()[0]}") from error
        image, label = self._columns(schema)
        images, values = part(train_files)
        classes = _class_names(schema, label) or list(map(str, sorted(set(values))))
        index = _label_index(values, classes, label)
        if not test_files:
            return _hold_out(images, index(values), classes, 0.2)
        test_images, test_values = part(test_files)
        return Decoded(images, index(values), test_images, index(test_values), classes)


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


def _decode_all(reads: list[Callable[[], bytes]], names: list[str], size: int | None) -> Tensor:
    """Encoded images to uint8 [N, 3, H, W]: RGB; with `size`, shorter side resized, then cropped centrally."""
    from PIL import Image, ImageOps

    def one(item: tuple[Callable[[], bytes], str]) -> np.ndarray:
        read, name = item
        try:
            image = Image.open(io.BytesIO(read())).convert("RGB")
        except Exception as error:
            raise UserError(f"{name} is not a readable image: {error}") from error
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(one, zip(reads, names, strict=True)))
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1 or next(iter(shapes))[0] != next(iter(shapes))[1]:
        raise ConfigError("the images are not all of one square size: set data.image_size=32 (or another)")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _hold_out(images: Tensor, labels: Tensor, classes: list[str], fraction: float) -> Decoded:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    test, train = order.tensor_split([round(len(images) * fraction)])
    return Decoded(images[train], labels[train], images[test], labels[test], classes)
