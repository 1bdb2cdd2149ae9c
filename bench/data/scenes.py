"""Scenes that need no files of one's own: scikit-learn's digits in colours over scikit-image's photographs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench import machine
from bench.data.builtin import TEST, TRAIN
from bench.data.decoding import read_all
from bench.data.masks import Masked, Segmented
from bench.errors import SEEDS, UserError, within

SOLID = 0.3  # coverage from which a pixel is the digit's
DIMMED = 0.5  # of a photograph's brightness: what is light is a digit
LIGHT = 100.0  # of 255: least of a digit's colour in any channel
SCALES = (2.0, 4.0)  # of the 8x8 digits
MOST = 6  # digits in a scene; 2 at least


@dataclass(frozen=True)
class Scenes(Masked):
    """2 to 6 digits a scene, scaled 2 to 4 times, in light colours over a piece of a darkened photograph; later ones
    cover earlier ones. Classes: the background, then the digits.

    A block of `block` scenes has a photograph, and a share of the digits, of its own, so that owner, attacker,
    validation and test share neither. block, tests: how many scenes each training and each test photograph has;
    image_size: their side, 64 where it is null; seed: of what is drawn.
    """

    tests: int = within(1)
    seed: int = within(0, SEEDS[1])

    def mask_source(self) -> dict[str, Any]:
        packages = {name: version(name) for name in ("scikit-image", "scikit-learn")}
        made = {"size": self.image_size, "scenes": self.block, "tests": self.tests, "seed": self.seed}
        return {"source": "scenes", "version": 1, **packages, **made}

    def masked(self) -> Segmented:
        import skimage
        from sklearn.datasets import load_digits

        folder, digits = Path(skimage.__file__).parent / "data", load_digits()
        if gone := [name for name in (*TRAIN, *TEST) if not (folder / name).is_file()]:
            raise UserError(f"this scikit-image ships no {gone[0]}: data=camvid data.path=... takes any pictures")
        side, count = self.image_size or 64, self.block * len(TRAIN) + self.tests * len(TEST)
        machine.afford(4 * count * side**2, f"{count:,} scenes of {side} pixels", "data.block, tests or image_size")
        ink, labels = torch.from_numpy(digits.images).float() / 16, digits.target
        order = np.random.default_rng(self.seed).permutation(len(ink))
        test, train = order[: len(ink) // 5], order[len(ink) // 5 :]
        found: list[Tensor] = []
        for names, pool, count, part in ((TRAIN, train, self.block, 0), (TEST, test, self.tests, 1)):
            photographs = read_all([(folder / n).read_bytes for n in names], list(names), None)
            made = [
                self._scenes(photograph, ink[mine], labels[mine], count, np.random.default_rng([self.seed, part, i]))
                for i, (photograph, mine) in enumerate(
                    zip(photographs, np.array_split(pool, len(photographs)), strict=True)
                )
            ]
            found += [torch.cat(each) for each in zip(*made, strict=True)]
        return Segmented(*found, ["background", *map(str, range(10))])

    def _scenes(
        self, photograph: np.ndarray, ink: Tensor, labels: np.ndarray, count: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """uint8 [count, 3, S, S] and masks [count, S, S], of one photograph and some digits [n, 8, 8] in 0..1."""
        side = self.image_size or 64
        plane = DIMMED * torch.from_numpy(photograph.copy()).permute(2, 0, 1).float()
        if (least := min(plane.shape[1:])) < 2 * side:
            plane = functional.interpolate(plane[None], scale_factor=2 * side / least, mode="bilinear")[0]
        pictures, masks = [], []
        for _ in range(count):
            top, left = (int(rng.integers(n - side + 1)) for n in plane.shape[1:])
            picture = plane[:, top : top + side, left : left + side].clone()
            mask = torch.zeros(side, side, dtype=torch.uint8)
            for _ in range(int(rng.integers(2, MOST + 1))):
                which, size = int(rng.integers(len(ink))), round(8 * float(rng.uniform(*SCALES)))
                size = min(size, side)
                shape = functional.interpolate(ink[which][None, None], (size, size), mode="bilinear")[0, 0].clamp(0, 1)
                y, x = (int(rng.integers(side - size + 1)) for _ in range(2))
                place = (slice(y, y + size), slice(x, x + size))
                colour = torch.from_numpy(rng.uniform(LIGHT, 255, 3)).float()[:, None, None]
                picture[:, *place] = shape * colour + (1 - shape) * picture[:, *place]
                mask[place][shape > SOLID] = int(labels[which]) + 1
            pictures.append(picture.round().clamp(0, 255).to(torch.uint8))
            masks.append(mask)
        return torch.stack(pictures), torch.stack(masks)
