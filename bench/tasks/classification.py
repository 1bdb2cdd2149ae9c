"""Image classification: top-1 accuracy in percent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import metrics, spec
from bench.data import images as sets
from bench.data.source import Data, split_indices
from bench.errors import ConfigError, checked, within
from bench.machine import device_of
from bench.models import base, heads
from bench.progress import Say
from bench.store.cache import Cache
from bench.types import Task


@dataclass(frozen=True)
class Classification:
    """The task's configuration. eval_batch: images per forward pass when measuring; max_damage: percent of accuracy a
    success may cost, which verify.max_damage takes."""

    eval_batch: int = within(1)
    max_damage: float = within(0)

    def __post_init__(self) -> None:
        checked(self, "task")

    def open(self, data: Data, cache: Cache, device: torch.device, say: Say) -> ClassificationTask:
        """The task over a data set, with the judge's view. Raises UserError for data that cannot be had."""
        images = sets.open_images(data, cache, say)
        index = split_indices(data, images.entry["train"], images.entry["test"])
        if len(index["owner"]) < 2:
            raise ConfigError("data: the owner split has 1 image, on which nothing can be trained; change data.*")
        return ClassificationTask(self, images, index, cache, device, say)


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Classes of images uint8 [B, 3, H, W]; a batch is (images, labels [B])."""

    config: Classification
    images: sets.Images
    index: dict[str, Tensor]
    cache: Cache
    device: torch.device
    say: Say
    smoothing: float = 0.0

    kind = "classification"
    gives = "classes"
    utility_name = "top1"

    @property
    def name(self) -> str:
        return self.images.data.name

    @property
    def max_damage(self) -> float:
        return self.config.max_damage

    @property
    def identity(self) -> dict[str, Any]:
        return {"task": self.kind, "classes": self.signature.num_classes, "data": self.images.identity}

    @property
    def signature(self) -> base.Signature:
        facts = self.images.entry
        statistics = tuple(facts["mean"]), tuple(facts["std"])
        patches = partial(sets.patch_covariance, self.images)
        return base.Signature(len(facts["classes"]), facts["image_size"], *statistics, patches)

    def size(self, split: str) -> int:
        return len(self.index[split])

    def tensors(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """(images, labels, positions of the split's) of the training or the test set."""
        self.check(split)
        tensors, part = sets.resident(self.images, self.device), "test" if split == "test" else "train"
        return tensors[part], tensors[f"{part}_labels"], self.index[split].to(self.device)

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        data = self.images.data
        return sets.batches(*self.tensors(split), batch_size, seed, data.crop, data.flip)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(model(images), labels, label_smoothing=self.smoothing)

    def smoothed(self, amount: float) -> ClassificationTask:
        return replace(self, smoothing=amount)

    def distill(self, model: nn.Module, teacher: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy to the teacher's outputs."""
        images, _ = batch
        with torch.no_grad():
            target = teacher(images).softmax(1)
        return functional.cross_entropy(model(images), target)

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """Mean over the batch of KL(p || p'), in nats, p = softmax(outputs [B, C]), p' = softmax(others [B, C])."""
        p, q = (functional.log_softmax(x.float(), 1) for x in (outputs, others))
        return functional.kl_div(q, p, reduction="batchmean", log_target=True)

    def example(self, count: int = 2) -> Tensor:
        """All-black images, uint8 [count, 3, H, W]."""
        size = self.signature.image_size
        return torch.zeros(count, 3, size, size, dtype=torch.uint8, device=self.device)

    def utility(self, model: nn.Module, split: str = "test") -> float:
        """Top-1 accuracy in percent on a split; outputs that are not numbers count as wrong."""
        model.eval()
        device = device_of(model)
        right = total = 0
        with torch.inference_mode():
            for images, labels in self.batches(split, self.config.eval_batch):
                logits = model(images.to(device))
                good = (logits.argmax(1) == labels.to(device)) & logits.isfinite().all(1)
                right, total = right + good.sum(), total + len(labels)
        return 100 * float(right) / total

    def confidence(
        self, host: nn.Module, victim: nn.Module, utility_host: float, utility_victim: float
    ) -> tuple[float, float]:
        """Of shares of n images: the binomial tail at the share of the commonest class, Wilson's interval."""
        labels, index = self.tensors("test")[1:]
        counts = torch.bincount(labels[index], minlength=self.signature.num_classes)
        guess, n = 100 * float(counts.max()) / len(index), len(index)
        return metrics.above(utility_host, guess, n), metrics.room(utility_victim, n)

    def build(self, model: base.Network, seed: int) -> nn.Module:
        if model.gives != self.gives:
            where = {"pictures": "restoration", "maps": "segmentation", "text": "language"}.get(
                model.gives, model.gives
            )
            raise ConfigError(f"model {model.title} gives {model.gives}: it is for task={where}, not classification")
        return base.to_device(model.build(self.signature, seed), self.device)

    def head(self, model: nn.Module) -> str:
        return heads.head_name(model, self.signature.num_classes)

    def transfer(self, data: Any) -> ClassificationTask:
        """As Task says. ConfigError for the same data set (the owner's images are in it) and for other image sizes."""
        task = self.config.open(spec.build(data, "attack.transfer"), self.cache, self.device, self.say)
        if task.images.digest == self.images.digest:
            raise ConfigError("attack.transfer is the same data set as data: its images are the owner's as well")
        if task.signature.image_size != self.signature.image_size:
            raise ConfigError(
                f"the other data set has {task.signature.image_size}-pixel images, the model takes "
                f"{self.signature.image_size}: set attack.transfer.image_size={self.signature.image_size}"
            )
        everything = torch.cat([task.index["owner"], task.index["attacker"]])
        index = {**task.index, "attacker": everything, "owner": everything[:0]}
        return replace(task, index=index, role=self.role)

    def adopt(self, model: nn.Module, old: ClassificationTask, seed: int) -> nn.Module:
        return heads.new_head(model, old.signature.num_classes, self.signature.num_classes, seed)
