"""Images that need no files of one's own: scikit-learn's digits, CIFAR by torchvision, scikit-image's photographs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine
from bench.data.decoding import read_all
from bench.data.source import Data, Decoded, hold_out, resized
from bench.errors import UserError, among

# The photographs in scikit-image's wheel: grey ones too, no drawings, no page of text; of the stereo pair one.
TRAIN = (
    *("astronaut.png", "brick.png", "cell.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
)
TEST = ("camera.png", "chelsea.png", "coffee.png", "rocket.jpg")


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
        machine.afford(8 * len(grey) * size**2, f"{len(grey):,} images of {size} pixels", "data.image_size")
        big = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear", antialias=False)
        images = (big.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(digits.target).long()
        return hold_out(images, labels, [str(i) for i in range(10)], fraction=0.2)


@dataclass(frozen=True)
class Torchvision(Data):
    """CIFAR-10 or CIFAR-100, downloaded by torchvision with its checksum into `root`."""

    dataset: str = among("CIFAR10", "CIFAR100")
    root: str

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
        pixels = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
        first, second = (resized(images, self.image_size) for images in pixels)
        return Decoded(first, torch.tensor(train.targets), second, torch.tensor(test.targets), train.classes)


@dataclass(frozen=True)
class Skimage(Data):
    """The 16 photographs that ship inside scikit-image, whose middle is kept where a side exceeds image_size."""

    def picture_source(self) -> dict[str, Any]:
        return {"source": "skimage", "version": version("scikit-image"), "size": self.image_size}

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
        if gone := [name for name in (*TRAIN, *TEST) if not (folder / name).is_file()]:
            raise UserError(f"this scikit-image ships no {gone[0]}: data=imagefolder data.path=... takes any pictures")
        train, test = (
            [self._middle(a) for a in read_all([(folder / n).read_bytes for n in names], list(names), None)]
            for names in (TRAIN, TEST)
        )
        return train, test

    def _middle(self, picture: np.ndarray) -> np.ndarray:
        for axis, side in enumerate(picture.shape[:2]):
            if self.image_size is not None and side > self.image_size:
                start = (side - self.image_size) // 2
                picture = picture.take(range(start, start + self.image_size), axis)
        return picture
