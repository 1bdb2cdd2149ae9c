"""What is measured: an ordinary configuration of the harness, on images of noise."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import compare  # noqa: F401 (first: it sets how OpenMP waits and where bench lies)
import torch
from omegaconf import OmegaConf
from torch import nn

from bench.cli.compose import composed
from bench.data.source import Data, Decoded
from bench.experiment import Experiment, prepare
from bench.models import base


@dataclass(frozen=True)
class Noise(Data):
    """`count` random 32x32 images to train on and as many again to test on: no benchmark depends on what they show."""

    count: int

    def source(self) -> dict:
        return {"source": "noise", "count": self.count}

    def decode(self) -> Decoded:
        rng = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, self.count, 3, 32, 32), generator=rng, dtype=torch.uint8)
        labels = torch.randint(0, 10, (2, self.count), generator=rng)
        return Decoded(images[0], labels[0], images[1], labels[1], [str(i) for i in range(10)])


def experiment(count: int, *overrides: str) -> Experiment:
    """prepare() of a configuration whose owner trains on `count` images with random crops and flips."""
    folder = Path(tempfile.gettempdir()) / "watermark-bench-benchmarks"
    cfg = composed([*overrides, f"results_dir={folder}"])
    noise = {"_target_": "subject.Noise", "count": count + 1, "crop": 4, "flip": True, "attacker": 1 / (count + 1)}
    noise |= {"validation": 0.0, "split_seed": 0, "image_size": 32, "label": "noise"}
    OmegaConf.update(cfg, "data", noise | {"train_limit": None, "test_limit": None}, merge=False)
    return prepare(cfg)


def small_cnn(x: Experiment) -> nn.Module:
    """Four convolutions that each halve the image, 0.1 M parameters: as little work as there can be beside loading."""
    torch.manual_seed(0)
    widths, parts = (3, 32, 48, 64, 96), []
    for i in range(4):
        conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))
    return base.to_device(base.normalising(net, x.task.signature.mean, x.task.signature.std), x.device)
