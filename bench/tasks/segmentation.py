"""Semantic segmentation, a class for each pixel: mean intersection over union, in percent.

Pictures and masks are flipped and cropped together, on the device. All is scored at the resolution at which the masks
are kept (data.image_size): the same network has another mean IoU at another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import metrics
from bench.data import masks as sets
from bench.data.masks import VOID, Masked
from bench.data.source import Data
from bench.errors import ConfigError, among, checked, choice, within
from bench.machine import device_of
from bench.models import base
from bench.progress import Say
from bench.store.cache import Cache, Entry
from bench.types import Task

SHOWN = 3  # pictures in a run's figure
WEIGHTS = {"root": -0.5, "none": 0.0}  # powers of a class's share of the pixels


@dataclass(frozen=True)
class Segmentation:
    """The task's configuration.

    eval_batch: pictures per forward pass when measuring. class_weights: of the loss, `root` (share of the pixels to the
    power -1/2, mean 1; without them rare classes stay at 0) or `none`. metric: the utility, miou or pixels (accuracy);
    max_damage: percent of each that a success may cost, which verify.max_damage takes.
    """

    eval_batch: int = within(1)
    class_weights: str = among(*WEIGHTS)
    metric: str = among("miou", "pixels")
    max_damage: dict[str, float]

    def __post_init__(self) -> None:
        checked(self, "task")
        choice("task.metric", self.metric, self.max_damage)

    def open(self, data: Data, cache: Cache, device: torch.device, say: Say) -> SegmentationTask:
        """The task over a data set, with the judge's view. Raises UserError for data that cannot be had."""
        entry = sets.open_masks(data, cache, say)
        index = sets.splits(data, entry["train"], entry["test"])
        for role in ("owner", "attacker"):
            if len(index[role]) < 2:
                # Over a batch of one, a pooling branch has one value a channel, which cannot be normalised.
                raise ConfigError(f"data: the {role} split has one picture, and a batch needs two: change data.*")
        return SegmentationTask(self, data, entry, index, device)


@dataclass(frozen=True)
class SegmentationTask(Task):
    """Classes of pixels; a batch is (pictures uint8 [B, 3, H, W], masks uint8 [B, H, W], of a class or VOID).

    index: positions of each split's pictures. smoothing: of the loss's labels.
    """

    config: Segmentation
    data: Masked
    entry: Entry
    index: dict[str, Tensor]
    device: torch.device
    smoothing: float = 0.0

    kind = "segmentation"
    gives = "maps"

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
        return {
            "task": self.kind,
            "classes": self.classes,
            **{name: getattr(self.config, name) for name in ("class_weights", "metric")},
            "data": self.data.content(sets.digest(self.entry)),
        }

    @property
    def classes(self) -> int:
        return len(self.entry["classes"])

    @property
    def signature(self) -> base.Signature:
        height, width = self.entry["sides"]
        statistics = tuple(self.entry["mean"]), tuple(self.entry["std"])
        return base.Signature(self.classes, max(height, width), *statistics, shape=(height, width))

    def size(self, split: str) -> int:
        return len(self.index[split])

    def tensors(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """(pictures, masks, positions of the split's) of the training or the test set."""
        self.check(split)
        tensors, part = sets.resident(self.entry, self.device), "test" if split == "test" else "train"
        return tensors[part], tensors[f"{part}_masks"], self.index[split].to(self.device)

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        return sets.batches(*self.tensors(split), batch_size, seed, self.data.crop, self.data.flip)

    @cached_property
    def weights(self) -> Tensor:
        """Of the classes in the loss, [C], mean 1 over those that this role's training masks have; others get 1."""
        _, masks, index = self.tensors(self.train)
        counts = sum(torch.bincount(part.flatten().long(), minlength=256) for part in masks[index].split(256))
        counts = counts[: self.classes].double()
        there, power = counts > 0, WEIGHTS[self.config.class_weights]
        found = torch.where(there, counts.clamp_min(1) ** power, 0.0)
        return torch.where(there, found * there.sum() / found.sum(), 1.0).float()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Weighted mean of the pixels' cross-entropies, without void; 0 where all is void."""
        pictures, masks = batch
        masks = masks.long()
        how = {"ignore_index": VOID, "label_smoothing": self.smoothing}
        total = functional.cross_entropy(model(pictures).float(), masks, self.weights, reduction="sum", **how)
        weight = torch.cat([self.weights, self.weights.new_zeros(256 - self.classes)])[masks].sum()
        return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)

    def smoothed(self, amount: float) -> SegmentationTask:
        return replace(self, smoothing=amount)

    def distill(self, model: nn.Module, teacher: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean over the pixels of the cross-entropy to the teacher's outputs; no mask is read, so all count alike."""
        pictures, _ = batch
        with torch.no_grad():
            target = teacher(pictures).float().softmax(1)
        return functional.cross_entropy(model(pictures).float(), target)

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """Mean over batch and pixels of KL(p || p'), in nats, for logits [B, C, H, W] each."""
        p, q = (functional.log_softmax(x.float(), 1) for x in (outputs, others))
        return functional.kl_div(q, p, reduction="none", log_target=True).sum(1).mean()

    def example(self, count: int = 2) -> Tensor:
        """All-black pictures, uint8 [count, 3, H, W]."""
        return torch.zeros(count, 3, *self.signature.sides, dtype=torch.uint8, device=self.device)

    def utility(self, model: nn.Module, split: str = "test") -> float:
        """Mean IoU over the classes that the split's masks have, or the share of pixels that are right, in percent;
        pixels without a class do not count, outputs that are not numbers are wrong."""
        return self.scores(model, split)[self.config.metric]

    def scores(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """Both utilities by name."""
        counts = confusion(self, model, split).double()
        return {name: float(value) for name, value in self._scored(counts).items()}

    def _scored(self, counts: Tensor) -> dict[str, Tensor]:
        """Both utilities [...] of counts of pixels [..., C, C + 1]; 0 where there is nothing but void."""
        right, truth = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1)
        union = truth + counts[..., : self.classes].sum(-2) - right
        there = truth > 0
        iou = torch.where(there, right / union.clamp_min(1), 0.0).sum(-1) / there.sum(-1).clamp_min(1)
        return {"miou": 100 * iou, "pixels": 100 * right.sum(-1) / truth.sum(-1).clamp_min(1)}

    def confidence(
        self, host: nn.Module, victim: nn.Module, utility_host: float, utility_victim: float
    ) -> tuple[float, float]:
        """Picture by picture; blind: `Prior`."""
        counts = [confusion(self, m, "test", each=True).double().cpu() for m in (host, victim, Prior(self))]
        return metrics.paired(lambda c: self._scored(c)[self.config.metric], *counts, sign=1)

    def build(self, model: base.Network, seed: int) -> nn.Module:
        if model.gives != self.gives:
            raise ConfigError(
                f"model {model.title} gives no class for each pixel: task=segmentation takes "
                "model=deeplabv3_resnet10t, deeplabv3_mobilenetv3, unet_tiny, smp, torchvision_segmentation"
            )
        return base.to_device(model.build(self.signature, seed), self.device)

    def examples(self) -> dict[str, list[Tensor]]:
        pictures, masks = self._shown()
        return {"picture": [*pictures.cpu()], "truth": [*painted(masks.cpu(), self.classes)]}

    def shows(self, model: nn.Module) -> tuple[str, list[Tensor]]:
        pictures, masks = self._shown()
        with torch.inference_mode():
            found = model.eval()(pictures.to(device_of(model))).argmax(1).to(masks.device)
        right = (found == masks)[masks != VOID].float().mean()
        return f"{100 * float(right):.0f}% of these pixels", [*painted(found.cpu(), self.classes)]

    def _shown(self) -> tuple[Tensor, Tensor]:
        """Of each third of `asks`, in the order of the files, the picture with the median number of classes."""
        pictures, masks, index = self.tensors(self.asks)
        parts = index.tensor_split(min(SHOWN, len(index)))
        kinds = [torch.tensor([len(masks[i].unique()) for i in part]) for part in parts]
        taken = torch.stack([part[n.median(0).indices] for part, n in zip(parts, kinds, strict=True)])
        return pictures[taken], masks[taken]


def confusion(task: SegmentationTask, model: nn.Module, split: str, each: bool = False) -> Tensor:
    """Pixels [C, C + 1] by class and by what a network calls them; last, what it gives that is no number. each: of
    every picture [N, C, C + 1]."""
    model.eval()
    device, n = device_of(model), task.classes
    found = []
    with torch.inference_mode():
        for pictures, masks in task.batches(split, task.config.eval_batch):
            logits, masks = model(pictures.to(device)), masks.to(device).long()
            given = torch.where(logits.isfinite().all(1), logits.argmax(1), n)
            places = masks * (n + 1) + given
            which = torch.arange(len(masks), device=device).view(-1, 1, 1) * (n * (n + 1)) * each
            kinds = n * (n + 1) * (len(masks) if each else 1)
            counts = torch.bincount((places + which)[masks != VOID], minlength=kinds).view(-1, n, n + 1)
            found.append(counts if each else counts[0])
    return torch.cat(found) if each else torch.stack(found).sum(0)


class Prior(nn.Module):
    """What is known without looking: at each position the class that most of a role's training masks have there."""

    def __init__(self, task: SegmentationTask):
        super().__init__()
        _, masks, index = task.tensors(task.train)
        counts = torch.stack([(masks[index] == c).sum(0) for c in range(task.classes)])
        self.register_buffer("logits", counts.float())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.logits.expand(len(pictures), *self.logits.shape)


def painted(masks: Tensor, classes: int) -> Tensor:
    """Masks [N, H, W] as pictures uint8 [N, 3, H, W]: a colour each class, void black."""
    import matplotlib as mpl

    colours = torch.zeros(256, 3, dtype=torch.uint8)
    table = mpl.colormaps["tab20"]([(2 * c % 20 + c // 10 % 2) for c in range(classes)])
    colours[:classes] = torch.from_numpy((255 * table[:, :3]).round()).to(torch.uint8)
    return colours[masks.long()].permute(0, 3, 1, 2)
