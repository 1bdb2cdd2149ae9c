"""fit(): the only training loop. Methods come in through penalty=, step= and loss=; attacks through only=."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import spec
from bench.errors import UserError, among, checked, within
from bench.progress import Progress, Say, unseen
from bench.types import Task

QUIET = 5.0  # seconds between progress lines


@dataclass(frozen=True)
class Train:
    """A schedule.

    optimizer: sgd or adamw; momentum and nesterov are SGD's. schedule: `constant`, `cosine` (to 0) or `step` (times
    gamma at each of `milestones`, fractions of the epochs), after a linear warm-up over the fraction `warmup`.
    precision: `auto` (bfloat16 autocast on CUDA, float32 on CPU), `float32` or `bfloat16`.
    compile: torch.compile the network where it is trained on the task's own loss; it costs up to a minute before the
    first step, and other rounding.
    """

    optimizer: str = among("sgd", "adamw")
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    batch_size: int = within(2)
    epochs: int = within(0)
    schedule: str = among("constant", "cosine", "step")
    warmup: float
    milestones: list[float]
    gamma: float
    precision: str = among("auto", "float32", "bfloat16")
    compile: bool

    def __post_init__(self) -> None:
        checked(self, "train")
        if self.lr <= 0 or self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise UserError("train: lr must be above 0, weight_decay at least 0, warmup in [0, 1)", 2)

    def optimizer_for(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            nesterov = self.nesterov and self.momentum > 0
            options = {"momentum": self.momentum, "nesterov": nesterov, "weight_decay": self.weight_decay}
            return torch.optim.SGD(parameters, self.lr, fused=True, **options)
        return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)

    def factor(self, step: int, steps: int) -> float:
        """Learning-rate factor in [0, 1] at `step` of `steps`."""
        warm = max(1, round(self.warmup * steps))
        if self.warmup and step < warm:
            return (step + 1) / warm
        if self.schedule == "cosine":
            start = warm if self.warmup else 0
            return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))
        if self.schedule == "step":
            return self.gamma ** sum(step >= m * steps for m in self.milestones)
        return 1.0

    def resolved(self, device: torch.device) -> Train:
        """The same schedule with `auto` replaced by the precision it means on a device, which decides the weights."""
        precision = "bfloat16" if device.type == "cuda" else "float32"
        return replace(self, precision=precision) if self.precision == "auto" else self

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.resolved(device).precision == "bfloat16")


@dataclass(frozen=True)
class Fit:
    """The training loop of bench.types.Fit.

    `may_diverge`: an attacker may ruin its copy, which then is a row; an owner may not, which is an error.
    `say` hears of epochs, at most every few seconds, `progress` of steps under the name `what`, and `log` of each
    epoch's number and mean loss, where that is read anyway.
    """

    train: Train
    seed: int
    may_diverge: bool = False
    say: Say | None = None
    what: str = "training"
    progress: Progress = unseen
    log: Callable[[int, float], None] | None = None

    def using(self, **schedule: Any) -> Fit:
        return replace(self, train=replace(self.train, **schedule))

    def seeded(self, seed: int) -> Fit:
        return replace(self, seed=seed)

    def __call__(self, model: nn.Module, task: Task, **how: Any) -> nn.Module:
        for _ in self.epochs(model, task, **how):
            pass
        return model

    def epochs(
        self,
        model: nn.Module,
        task: Task,
        *,
        penalty: Callable[[nn.Module], Tensor] | None = None,
        step: Callable[[nn.Module], None] | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        only: Collection[str] | None = None,
        **schedule: Any,
    ) -> Iterator[int]:
        config = replace(self.train, **schedule)
        # Methods' own losses reach into the network by name, which a compiled one does not have.
        forward = torch.compile(model) if config.compile and loss is None else model
        loss = loss or task.loss
        device = next(model.parameters()).device
        trained = _select(model, only)
        optimizer = config.optimizer_for(trained)
        per_epoch = max(1, task.size(task.train) // config.batch_size)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda i: config.factor(i, max(1, per_epoch * config.epochs))
        )
        precision = config.autocast(device)
        spoke = time.monotonic()
        with self.progress(self.what, per_epoch * config.epochs) as stepped:
            for epoch in range(1, config.epochs + 1):
                _train_mode(model, only)
                # Dropout and stochastic depth draw from the global generator: seeded each epoch, they
                # do not depend on what anybody else drew in between.
                torch.manual_seed(spec.derive(self.seed, "layers", epoch))
                total = torch.zeros((), device=device)
                for batch in task.batches(task.train, config.batch_size, spec.derive(self.seed, "batches", epoch)):
                    with precision:
                        value = loss(forward, batch)
                    if penalty is not None:
                        value = value + penalty(model)
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()
                    optimizer.step()
                    scheduler.step()
                    if step is not None:
                        with torch.no_grad():
                            step(model)
                    total += value.detach()
                    stepped()
                model.eval()
                # Read once an epoch: a value read in the loop would wait for the device at each step.
                if not self.may_diverge:
                    lost = float(total)
                    if not math.isfinite(lost):
                        raise UserError(f"training diverged in epoch {epoch} (loss {lost}): lower train.lr")
                    if self.log:
                        self.log(epoch, lost / per_epoch)
                if self.say and time.monotonic() - spoke > QUIET:
                    spoke = time.monotonic()
                    self.say(f"  epoch {epoch} of {config.epochs}: loss {float(total) / per_epoch:.4f}")
                yield epoch
        model.eval().requires_grad_(True)


def _select(model: nn.Module, only: Collection[str] | None) -> list[nn.Parameter]:
    model.requires_grad_(only is None)
    if only is None:
        return list(model.parameters())
    parts = [model.get_submodule(name).requires_grad_(True) for name in only]
    return [p for part in parts for p in part.parameters()]


def _train_mode(model: nn.Module, only: Collection[str] | None) -> None:
    model.train(only is None)
    for name in only or ():
        model.get_submodule(name).train()
