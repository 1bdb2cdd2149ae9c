"""Image classification: top-1 accuracy in percent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import data as datasets
from bench import models, spec
from bench.cache import Cache
from bench.sources import Data
from bench.tasks import roles
from bench.types import ConfigError


@dataclass(frozen=True)
class Classification:
    """The task's configuration. eval_batch: images per forward pass when measuring."""

    eval_batch: int

    def __post_init__(self) -> None:
        spec.at_least("task.eval_batch", self.eval_batch, 1)

    def open(self, data: Data, cache: Cache, device: torch.device, say: Callable[[str], None]) -> ClassificationTask:
        """The task over a data set, with the judge's view. Raises UserError for data that cannot be had."""
        images = datasets.open_images(data, cache, say)
        index = datasets.split_indices(data, images.entry["train"], images.entry["test"])
        return ClassificationTask(self, images, index, cache, device, say)


@lru_cache(maxsize=2)
def _resident(folder: Path, digest: str, inode: int, device: torch.device) -> dict[str, Tensor]:
    """A data set's tensors on the device, shared by all runs of a process (digest and inode tell a rebuilt one)."""
    return {k: v.to(device) for k, v in datasets.load_tensors(folder).items()}


@dataclass(frozen=True)
class ClassificationTask:
    """bench.types.Task for classification. `role` decides which splits may be drawn: see ALLOWED."""

    config: Classification
    images: datasets.Images
    index: dict[str, Tensor]
    cache: Cache
    device: torch.device
    say: Callable[[str], None]
    role: str = "judge"

    gives = "classes"
    utility_name = "top1"

    @property
    def name(self) -> str:
        """The data set's, as tables print it."""
        return self.images.data.name

    @property
    def train(self) -> str:
        """The split this role trains on."""
        return roles.trains_on(self.role)

    @property
    def identity(self) -> dict[str, Any]:
        """What a stage hash covers: the data by content, splits and augmentation."""
        return {"task": "classification", "classes": self.signature.num_classes, "data": self.images.identity}

    @property
    def signature(self) -> models.Signature:
        facts = self.images.entry
        return models.Signature(len(facts["classes"]), facts["image_size"], tuple(facts["mean"]), tuple(facts["std"]))

    def view(self, role: str) -> ClassificationTask:
        """The same task as `owner`, `attacker` or `judge` may see it. Nobody gets back to more."""
        roles.check_view(self.role, role)
        return replace(self, role=role)

    def size(self, split: str) -> int:
        return len(self.index[split])

    def _draw(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        roles.check_draw(self.role, split)
        folder, digest = self.images.entry.path, self.images.entry.meta["sha256"]["images.safetensors"]
        tensors = _resident(folder, digest, (folder / "images.safetensors").stat().st_ino, self.device)
        part = "test" if split == "test" else "train"
        return tensors[part], tensors[f"{part}_labels"], self.index[split].to(self.device)

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(images uint8 [B, 3, H, W], labels [B]); with a seed shuffled and augmented, else in order and complete.

        Raises PermissionError for a split that is not this role's to see.
        """
        images, labels, index = self._draw(split)
        data = self.images.data
        return datasets.batches(images, labels, index, batch_size, seed, data.crop, data.flip)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def distill(self, model: nn.Module, teacher: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy to the teacher's outputs: no labels are read."""
        images, _ = batch
        with torch.no_grad():
            target = teacher(images).softmax(1)
        return functional.cross_entropy(model(images), target)

    def inputs(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """What the model is called with."""
        return batch[0]

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """Mean over the batch of KL(p || p'), in nats, p = softmax(outputs [B, C]), p' = softmax(others [B, C])."""
        p, q = (functional.log_softmax(x.float(), 1) for x in (outputs, others))
        return functional.kl_div(q, p, reduction="batchmean", log_target=True)

    def example(self, count: int = 2) -> Tensor:
        """All-black images, uint8 [count, 3, H, W]: their shape says what the network takes, their content nothing."""
        size = self.signature.image_size
        return torch.zeros(count, 3, size, size, dtype=torch.uint8, device=self.device)

    def utility(self, model: nn.Module, split: str = "test") -> float:
        """Top-1 accuracy in percent on a split; outputs that are not numbers count as wrong."""
        model.eval()
        # A dynamically quantised model has no parameters left; its normalisation buffers tell where it lives.
        device = model.input_mean.device
        right = total = 0
        with torch.inference_mode():
            for images, labels in self.batches(split, self.config.eval_batch):
                logits = model(images.to(device))
                good = (logits.argmax(1) == labels.to(device)) & logits.isfinite().all(1)
                right, total = right + good.sum(), total + len(labels)
        return 100 * float(right) / total

    def build(self, model: models.Model, seed: int) -> nn.Module:
        """A network for this task on its device, its initialisation fixed by the seed. ConfigError for what is none."""
        if not isinstance(model, models.Model):
            raise ConfigError(f"model {model.title} gives images: it is for task=restoration, not classification")
        net = models.build(model, self.signature, seed)
        models.check_forward(net, self.signature)
        return models.to_device(net, self.device)

    def head(self, model: nn.Module) -> str:
        return models.head_name(model, self.signature.num_classes)

    def new_head(self, model: nn.Module, seed: int) -> nn.Module:
        """Re-initialise the last layer in place (its input statistics stay)."""
        classes = self.signature.num_classes
        return models.new_head(model, classes, classes, seed)

    def transfer(self, data: Any) -> ClassificationTask:
        """This role's task on another data set (a conf/data node), all of whose training images are the attacker's.

        Raises ConfigError for the same data set, which would hand over the owner's images, and for other image sizes.
        """
        task = self.config.open(spec.build(data, "attack.transfer"), self.cache, self.device, self.say)
        if task.images.identity["digest"] == self.images.identity["digest"]:
            raise ConfigError("attack.transfer is the same data set as data: its images are the owner's as well")
        if task.signature.image_size != self.signature.image_size:
            raise ConfigError(
                f"the other data set has {task.signature.image_size}-pixel images, the model takes "
                f"{self.signature.image_size}: set attack.transfer.image_size={self.signature.image_size}"
            )
        everything = torch.cat([task.index["owner"], task.index["attacker"]])
        nothing = everything[:0]
        return replace(task, index={**task.index, "attacker": everything, "owner": nothing}, role=self.role)

    def adopt(self, model: nn.Module, old: ClassificationTask, seed: int) -> nn.Module:
        """A model of task `old` with a fresh head for this one, in place."""
        return models.new_head(model, old.signature.num_classes, self.signature.num_classes, seed)
