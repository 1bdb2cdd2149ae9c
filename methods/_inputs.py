"""Inputs that a key holds: pictures that nobody would take for the task's, made from the key's own draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WAVES = 4  # gratings a picture


def abstract(rng: np.random.Generator, count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side]: each the sum of some gratings of random direction, frequency, phase and colour, as
    hard-edged as the draw has it. Adi et al. (2018) take abstract pictures from the Internet; these need none."""
    y, x = np.mgrid[:side, :side] / side
    shape = count, WAVES, 1, 1, 1
    angle, phase = rng.uniform(0, np.pi, shape), rng.uniform(0, 2 * np.pi, shape)
    cycles = rng.uniform(0.5, max(1.0, side / 5), shape)
    colour = rng.standard_normal((count, WAVES, 3, 1, 1))
    wave = np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    total = (colour * wave).sum(1) * rng.uniform(0.5, 4, (count, 1, 1, 1))
    pictures = 255 / (1 + np.exp(-total))
    return torch.from_numpy(pictures.round().astype(np.uint8))
