"""What every source of images shares: its options, its identity, how it is split and how it is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench import machine
from bench.errors import SEEDS, ConfigError, checked, within


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
    image_size: int | None = within(8, 4096)
    crop: int = within(0)
    flip: bool
    validation: float = within(0, 1, ends="[)")
    attacker: float = within(0, 1, ends="[)")
    split_seed: int = within(0, SEEDS[1])
    train_limit: int | None = within(1)
    test_limit: int | None = within(1)

    # Where the content lies and how it was read: told by its digest already.
    located: ClassVar[tuple[str, ...]] = (
        *("label", "path", "root", "dataset", "image_size"),
        *("train", "test", "image_column", "label_column"),
    )

    counted: ClassVar[bool] = False  # whether images are counted by class when they are decoded

    def __post_init__(self) -> None:
        checked(self, "data")

    @property
    def name(self) -> str:
        return self.label or Path(getattr(self, "path", type(self).__name__)).name

    def content(self, digest: str) -> dict[str, Any]:
        """What a stage hash covers: the content's digest and how it is split and augmented."""
        return {k: v for k, v in asdict(self).items() if k not in self.located} | {"digest": digest}

    def source(self) -> dict[str, Any]:
        """A cheap fingerprint of the files, which decides whether they have to be decoded again. Raises ConfigError for
        pictures without labels."""
        raise ConfigError(f"data={type(self).__name__.lower()} has no labels: it is for task=restoration")

    def mask_source(self) -> dict[str, Any]:
        """`source` of what has masks (bench.data.masks). Raises ConfigError where there are none."""
        kind = type(self).__name__.lower()
        raise ConfigError(f"data={kind} has no masks: task=segmentation takes data=scenes, camvid, cityscapes, voc")

    def decode(self) -> Decoded:
        raise NotImplementedError

    def ignored(self) -> list[Path]:
        """Files and folders that lie among the data and are no part of them."""
        return []

    def picture_source(self) -> dict[str, Any]:
        """`source` of `pictures`."""
        return self.source()

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Training and test pictures, uint8 [H, W, 3], of any sizes: for tasks that ask for no labels.

        From files they come in their own size, whatever image_size says. Raises UserError or ConfigError.
        """
        decoded = self.decode()
        return [*decoded.train.permute(0, 2, 3, 1).numpy()], [*decoded.test.permute(0, 2, 3, 1).numpy()]


def told(ignored: list[Path]) -> str:
    """What was ignored, for the end of a line: `; ignored: 3 files, 1 folder (.ipynb_checkpoints)`."""
    if not ignored:
        return ""
    parts = []
    for what, found in (
        ("file", [p for p in ignored if not p.is_dir()]),
        ("folder", [p for p in ignored if p.is_dir()]),
    ):
        if names := [*dict.fromkeys(p.name for p in found)]:
            more = ", ..." if len(names) > 3 else ""
            parts.append(f"{len(found):,} {what}{'s' * (len(found) > 1)} ({', '.join(names[:3])}{more})")
    return f"; ignored: {', '.join(parts)}"


def counts(labels: Tensor, classes: list[str]) -> str:
    """Images of each class: (cat 40, dog 30), or of many (30, owl, to 40, cat, each)."""
    found = torch.bincount(labels, minlength=len(classes)).tolist()
    if len(classes) <= 8:
        return f" ({', '.join(f'{name} {n:,}' for name, n in zip(classes, found, strict=True))})"
    low, high = min(found), max(found)
    return f" ({low:,}, {classes[found.index(low)]}, to {high:,}, {classes[found.index(high)]}, each)"


def existing(path: str, key: str) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"{key}={path}: no such folder (looked in {Path.cwd()})")
    return root


def stamp(files: list[Path]) -> str:
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[-1] == images.shape[-2] == size:
        return images
    machine.afford(
        len(images) * images.shape[1] * size**2, f"{len(images):,} images of {size} pixels", "data.image_size"
    )
    parts = [
        torch.nn.functional.interpolate(p.float(), size=(size, size), mode="bilinear", antialias=True)
        for p in images.split(1024)
    ]
    return torch.cat([p.clamp(0, 255).round().to(torch.uint8) for p in parts])


def _order(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Positions of the test and the training images, where a fraction is held out."""
    test, train = torch.from_numpy(np.random.default_rng(0).permutation(count)).tensor_split([round(count * fraction)])
    return test, train


def apart(pictures: list[np.ndarray], fraction: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and test pictures, a fraction held out."""
    test, train = _order(len(pictures), fraction)
    return [pictures[i] for i in train], [pictures[i] for i in test]


def hold_out(images: Tensor, labels: Tensor, classes: list[str], fraction: float) -> Decoded:
    test, train = _order(len(images), fraction)
    return Decoded(images[train], labels[train], images[test], labels[test], classes)


def split_indices(data: Any, n_train: int, n_test: int, what: str = "training images") -> dict[str, Tensor]:
    """Disjoint positions of owner, attacker and validation in the training set, and of the test set.

    Raises ConfigError when a split would be empty.
    """
    order = torch.from_numpy(np.random.default_rng(data.split_seed).permutation(n_train))
    order = order[: data.train_limit] if data.train_limit else order
    validation = round(len(order) * data.validation)
    attacker = round((len(order) - validation) * data.attacker)
    parts = order.tensor_split([validation, validation + attacker])
    splits = dict(zip(("validation", "attacker", "owner"), parts, strict=True))
    # Files are often sorted by class: a part of the test set is drawn, not cut off.
    chosen = np.random.default_rng(data.split_seed).permutation(n_test)[: data.test_limit or n_test]
    splits["test"] = torch.from_numpy(np.sort(chosen))
    if empty := [name for name in ("owner", "attacker", "test") if not len(splits[name])]:
        raise ConfigError(f"data: the {empty[0]} split is empty ({n_train} {what}); change data.*")
    return splits


def shuffled(index: Tensor, size: int, seed: int, device: torch.device) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Positions [B] in an order of the seed's, and a generator of the device for what else is drawn.

    A last part that is not full is left out (a batch of one breaks batch normalisation), unless it is the only one.
    """
    host, rng = torch.Generator(), torch.Generator(device)
    host.manual_seed(seed)
    rng.manual_seed(seed)
    order = index[torch.randperm(len(index), generator=host).to(index.device)]
    full = len(order) // size * size or len(order)
    for part in order[:full].split(size):
        yield part, rng
