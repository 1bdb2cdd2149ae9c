"""Degraded pictures: noise, rain, JPEG."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import degradations, pictures
from tests.helpers import CPU, restoration_task


def test_jpeg_is_done_to_whole_pictures(picture_folder, results):
    one = restoration_task(picture_folder, results, "task.degradation=jpeg", "task.quality=5")
    clean, kept = (pictures.resident(entry, CPU) for entry in (one.clean, one.degraded))
    for start, (height, width) in zip(clean.starts.tolist(), clean.sizes.tolist(), strict=True):
        plane, made = (p.pixels[start : start + 3 * height * width].view(3, height, width) for p in (clean, kept))
        file = io.BytesIO()
        Image.fromarray(plane.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=5)
        assert np.array_equal(np.asarray(Image.open(file)), made.permute(1, 2, 0).numpy())
    other = restoration_task(picture_folder, results, "task.degradation=jpeg", "task.quality=50")
    assert other.identity != one.identity


def test_noise_has_its_size_and_rain_only_brightens():
    grey = torch.full((64, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = degradations.noise(grey, torch.Generator().manual_seed(0), 25.0).float()
    # 196,608 values; the standard error of their deviation is 25 / sqrt(2 * 196,608) = 0.04, rounding adds 1/12.
    assert noisy.std().item() == pytest.approx(math.sqrt(25**2 + 1 / 12), abs=0.2)
    assert noisy.mean().item() == pytest.approx(128, abs=0.3)
    rng = torch.Generator().manual_seed(0)
    wet = degradations.rain(grey, rng, density=0.004, length=21, tilt=30.0, strength=0.6)
    assert (wet >= grey).all()
    assert torch.equal(wet[:, 0], wet[:, 1])
    assert 0.02 < (wet > grey).float().mean() < 0.3
    dry = degradations.rain(grey, torch.Generator().manual_seed(0), density=0.0, length=21, tilt=30.0, strength=0.6)
    assert torch.equal(dry, grey)


def test_streaks_are_lines_of_their_length_at_their_angle():
    upright, level = degradations.streaks(torch.tensor([0.0, math.pi / 2]), 10)
    assert upright.sum().item() == pytest.approx(21, abs=1e-3)
    assert torch.allclose(upright[:, 10], torch.ones(21), atol=1e-5)
    assert torch.allclose(level, upright.T, atol=1e-5)
