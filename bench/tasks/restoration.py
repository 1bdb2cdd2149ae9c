"""Image restoration, image to image: noise, JPEG or rain taken out; PSNR in dB, or SSIM.

Pairs (degraded, clean) are patches of clean pictures. Training draws its patches, flips and noise or rain anew in each
epoch, on the device; JPEG alone is done once to each whole picture and kept. What is measured is always the same: the
pictures' disjoint tiles, their noise or rain drawn on the CPU by a seed, so that host, victim and suspect, and every
device, see equal pairs. All is rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import metrics, spec
from bench.data import degradations, pictures
from bench.data.pixels import seen
from bench.data.source import Data, shuffled, split_indices
from bench.errors import ConfigError, among, checked, choice, within
from bench.machine import device_of
from bench.models import base
from bench.progress import Say
from bench.store.cache import Cache, Entry
from bench.types import Task

# Pixel values that count as one in loss and divergence. At 28 dB the loss is then about a half, as cross-entropies are
# for which methods' weights (lambda_, margin) were chosen.
UNIT = 10.0
PARAMETERS = {"noise": ("sigma",), "jpeg": ("quality",), "rain": ("density", "length", "tilt", "strength")}
PART = 256  # tiles degraded at once
# Arguments of Pictures.patches, and the generator that noise or rain is drawn from.
Places = Iterator[tuple[tuple, torch.Generator]]


@dataclass(frozen=True)
class Restoration:
    """The task's configuration.

    eval_batch: patches per forward pass when measuring; patch: their side in pixels. degradation: noise, jpeg or rain,
    with the parameters in PARAMETERS (bench.data.degradations; quality is Pillow's). loss: l2 or l1; metric: the
    utility, psnr or ssim; max_damage: what a success may cost in each, which verify.max_damage takes.
    """

    eval_batch: int = within(1)
    patch: int = within(16)
    degradation: str = among(*PARAMETERS)
    sigma: float = within(0, 255)
    quality: int = within(1, 95)
    density: float = within(0, 1)
    length: int = within(1, 101)
    tilt: float = within(0, 90)
    strength: float = within(0, 1)
    loss: str = among("l2", "l1")
    metric: str = among("psnr", "ssim")
    max_damage: dict[str, float]

    def __post_init__(self) -> None:
        checked(self, "task")
        choice("task.metric", self.metric, self.max_damage)

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of the degradation that is chosen."""
        return {name: getattr(self, name) for name in PARAMETERS[self.degradation]}

    def open(self, data: Data, cache: Cache, device: torch.device, say: Say) -> RestorationTask:
        """The task over a data set, with the judge's view. Raises UserError for data that cannot be had."""
        clean = pictures.open_pictures(data, cache, say)
        degraded = pictures.compressed(clean, self.quality, cache, say) if self.degradation == "jpeg" else None
        sizes = pictures.resident(clean, torch.device("cpu")).sizes
        fit = (sizes.amin(1) >= self.patch).nonzero()[:, 0]
        if left_out := len(sizes) - len(fit):
            if len(fit) == 0:
                side = int(sizes.amin(1).max())
                raise ConfigError(f"no picture of {data.name} holds a patch: set task.patch={side} or less")
            say(f"data: {left_out:,} pictures are smaller than {self.patch}x{self.patch} and left out")
        train, test = fit[fit < clean["train"]], fit[fit >= clean["train"]]
        index = split_indices(data, len(train), len(test))
        index = {name: (test if name == "test" else train)[at] for name, at in index.items()}
        return RestorationTask(self, data, clean, degraded, index, device)


@dataclass(frozen=True)
class RestorationTask(Task):
    """Patches of pictures, degraded and clean. Splits are disjoint by picture.

    index: positions of each split's pictures. A split's size is the number of disjoint patches that its pictures hold:
    in an epoch each picture gives so many patches, at random places.
    """

    config: Restoration
    data: Data
    clean: Entry
    degraded: Entry | None
    index: dict[str, Tensor]
    device: torch.device

    kind = "restoration"
    gives = "pictures"

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def utility_name(self) -> str:
        return self.config.metric

    @property
    def max_damage(self) -> float:
        return self.config.max_damage[self.config.metric]

    @property
    def identity(self) -> dict[str, Any]:
        """What a stage hash covers: pictures by content, splits, degradation, loss, and the utility's metric."""
        config, data = self.config, self.data
        splits = ("flip", "validation", "attacker", "split_seed", "train_limit", "test_limit")
        made = {"made": pictures.digest(self.degraded)} if self.degraded else {}
        return {
            "task": self.kind,
            **{name: getattr(config, name) for name in ("patch", "degradation", "loss", "metric")},
            "parameters": config.parameters | made,
            "data": {name: value for name, value in asdict(data).items() if name in splits}
            | {"digest": pictures.digest(self.clean)},
        }

    def size(self, split: str) -> int:
        sizes = pictures.resident(self.clean, torch.device("cpu")).sizes[self.index[split]]
        return int((sizes // self.config.patch).prod(1).sum())

    def tensors(self, split: str) -> tuple[pictures.Pictures, pictures.Pictures | None, Tensor]:
        """Clean pictures, degraded ones where they are kept, and which of them each patch of the split is of."""
        self.check(split)
        clean = pictures.resident(self.clean, self.device)
        degraded = pictures.resident(self.degraded, self.device) if self.degraded else None
        which = self.index[split].to(self.device)
        return clean, degraded, which.repeat_interleave((clean.sizes[which] // self.config.patch).prod(1))

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(degraded, clean) patches, uint8 [B, 3, P, P] each: with a seed at random places, without the tiles of the
        split's pictures, always the same."""
        clean, degraded, which = self.tensors(split)
        places = self._tiles(split, clean, which) if seed is None else self._random(clean, which, batch_size, seed)
        pairs = (self._pair(clean, degraded, *place) for place in places)
        return (batch for pair in pairs for batch in zip(*(x.split(batch_size) for x in pair), strict=True))

    def _random(self, clean: pictures.Pictures, which: Tensor, size: int, seed: int) -> Places:
        for part, rng in shuffled(which, size, seed, self.device):
            free = clean.sizes[part] - self.config.patch
            drawn = torch.rand(len(part), 3, generator=rng, device=self.device)
            # A float32 just below 1 times a large side may round up to it.
            top, left = torch.minimum((drawn[:, :2] * (free + 1)).long(), free).unbind(1)
            mirrored = drawn[:, 2] < 0.5 if self.data.flip else None
            yield (part, top, left, self.config.patch, mirrored), rng

    def _tiles(self, split: str, clean: pictures.Pictures, which: Tensor) -> Places:
        side, seed = self.config.patch, self.data.split_seed
        grids = clean.sizes[self.index[split].to(self.device)] // side
        number = torch.cat([torch.arange(n, device=self.device) for n in grids.prod(1).tolist()])
        grid = clean.sizes[which] // side
        margin = (clean.sizes[which] - grid * side) // 2
        top = margin[:, 0] + number // grid[:, 1] * side
        left = margin[:, 1] + number % grid[:, 1] * side
        for start in range(0, len(which), PART):
            at = slice(start, start + PART)
            rng = torch.Generator().manual_seed(spec.derive(seed, "pairs", split, start))
            yield (which[at], top[at], left[at], side, None), rng

    def _pair(
        self, clean: pictures.Pictures, degraded: pictures.Pictures | None, where: tuple, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        target = clean.patches(*where)
        if degraded is not None:
            return degraded.patches(*where), target
        return getattr(degradations, self.config.degradation)(target, rng, **self.config.parameters), target

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        degraded, clean = batch
        return self._distance(model(degraded), clean)

    def _distance(self, outputs: Tensor, target: Tensor) -> Tensor:
        """l2: -log of a Gaussian of standard deviation UNIT, per value; l1: of a Laplacian. Constants left out."""
        outputs, target = outputs.float() / UNIT, target.float() / UNIT
        if self.config.loss == "l1":
            return functional.l1_loss(outputs, target)
        return functional.mse_loss(outputs, target) / 2

    def distill(self, model: nn.Module, teacher: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss against the teacher's pictures, as 8 bits show them."""
        degraded, _ = batch
        with torch.no_grad():
            target = seen(teacher(degraded))
        return self._distance(model(degraded), target)

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """KL divergence in nats per value, outputs [B, 3, H, W] taken as means of Gaussians of deviation UNIT."""
        return functional.mse_loss(outputs.float() / UNIT, others.float() / UNIT) / 2

    def example(self, count: int = 2) -> Tensor:
        """All-black patches, uint8 [count, 3, P, P]."""
        side = self.config.patch
        return torch.zeros(count, 3, side, side, dtype=torch.uint8, device=self.device)

    def utility(self, model: nn.Module, split: str = "test") -> float:
        """PSNR in dB (at most 100) or SSIM (at most 1) of a split's tiles, outputs rounded to 8 bits.

        PSNR is that of the mean squared error over all tiles: a single one may be restored exactly and have none.
        SSIM is the mean over tiles. Outputs that are not numbers count as black.
        """
        target = torch.cat([clean.cpu() for _, clean in self.batches(split, self.config.eval_batch)])
        return metrics.similarity(target, self._outputs(model, split), self.config.metric)

    def confidence(
        self, host: nn.Module, victim: nn.Module, utility_host: float, utility_victim: float
    ) -> tuple[float, float]:
        """Tile by tile; blind: the inputs as they are."""
        target = torch.cat([clean.cpu() for _, clean in self.batches("test", self.config.eval_batch)])
        given = [self._outputs(m, "test") for m in (host, victim)]
        given.append(torch.cat([degraded.cpu() for degraded, _ in self.batches("test", self.config.eval_batch)]))
        if self.config.metric == "psnr":
            parts = [(target.double() - g.double()).square().mean((1, 2, 3)) for g in given]
        else:
            parts = [torch.tensor(metrics.similarities(target, g), dtype=torch.float64) for g in given]
        parts = [torch.stack([part, torch.ones_like(part)], 1) for part in parts]
        return metrics.paired(_decibels if self.config.metric == "psnr" else _mean, *parts, sign=1)

    def answers(self, model: nn.Module) -> Tensor:
        """Float [N, 3, P, P], rounded, on the task's device."""
        return self._outputs(model, self.asks).to(self.device, torch.float32)

    def _outputs(self, model: nn.Module, split: str) -> Tensor:
        """uint8 [N, 3, P, P] of a split's tiles, on the CPU."""
        model.eval()
        device = device_of(model)
        with torch.inference_mode():
            found = [
                seen(model(degraded.to(device))).to("cpu", torch.uint8)
                for degraded, _ in self.batches(split, self.config.eval_batch)
            ]
        return torch.cat(found)

    def undegraded(self) -> RestorationTask:
        return replace(self, config=replace(self.config, degradation="noise", sigma=0.0), degraded=None)

    def build(self, model: base.Network, seed: int) -> nn.Module:
        if model.gives != self.gives:
            raise ConfigError(
                f"model {model.title} gives no images: task=restoration takes model=unet, dncnn, resnet_ir"
            )
        if self.config.patch % model.multiple:
            raise ConfigError(f"task.patch={self.config.patch}: {model.title} takes multiples of {model.multiple}")
        io = base.Signature(0, self.config.patch, (127.5,) * 3, (127.5,) * 3)
        return base.to_device(model.build(io, seed), self.device)


def _mean(parts: Tensor) -> Tensor:
    """Of [..., 2], sums and counts."""
    return parts[..., 0] / parts[..., 1]


def _decibels(parts: Tensor) -> Tensor:
    """PSNR of sums of tiles' mean squared errors, and counts, [..., 2]; at most metrics.BEST."""
    return (10 * (255**2 / _mean(parts)).log10()).clamp(max=metrics.BEST)
