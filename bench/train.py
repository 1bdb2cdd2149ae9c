"""fit(): the only training loop. Methods come in through penalty=, step= and loss=; attacks through only=."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench import spec
from bench.errors import ConfigError, UserError, among, checked, near, within
from bench.models import anatomy
from bench.progress import Progress, Say, silent, unseen
from bench.store.checkpoint import Checkpoint
from bench.types import Task

QUIET = 5.0  # seconds between progress lines


@dataclass(frozen=True)
class Train:
    """A schedule.

    optimizer: sgd or adamw; momentum and nesterov are SGD's. schedule: `constant`, `cosine` (to 0), `linear` (to 0) or
    `step` (times gamma at each of `milestones`, fractions of the epochs), after a linear warm-up over the fraction
    `warmup`. precision: `float32`, `bfloat16` (autocast), or `auto`: what bench.precision finds for the network.
    compile: torch.compile the network where it is trained on the task's own loss; it costs up to a minute before the
    first step, and other rounding.
    label_smoothing: of the owner's loss. bias_rate: times the learning rate at which biases of normalisation layers
    without trained scales train, their weight decay divided by it (arXiv 2404.00498, Sec. 3.4). finetune: fields that
    are otherwise where the owner embeds into a trained host. checkpoint: minutes after which a stage that still trains
    is kept on disk, to go on from there if it is killed; None: never.
    """

    optimizer: str = among("sgd", "adamw")
    lr: float = within(0, ends="(]")
    momentum: float = within(0, 1, ends="[)")
    nesterov: bool
    weight_decay: float = within(0)
    batch_size: int = within(2, 10**6)
    epochs: int = within(0)
    schedule: str = among("constant", "cosine", "linear", "step")
    warmup: float = within(0, 1, ends="[)")
    milestones: list[float] = within(0, 1, empty=True)
    gamma: float = within(0)
    precision: str = among("auto", "float32", "bfloat16")
    compile: bool
    label_smoothing: float = spec.later(0.0, check=within(0, 1, ends="[)"))
    bias_rate: float = spec.later(1.0, check=within(0, ends="(]"))
    # Enters the address of marks that it makes, not of hosts.
    finetune: dict[str, Any] | None = spec.later(None, hashed=False)
    checkpoint: float | None = spec.later(None, hashed=False, check=within(0))

    def __post_init__(self) -> None:
        checked(self, "train")
        self.tuned()

    def tuned(self) -> Train:
        """The schedule that embeds into a trained host. Raises ConfigError for a field of `finetune` that is none."""
        own = [f.name for f in fields(self) if f.name not in ("finetune", "checkpoint", "precision")]
        if unknown := [name for name in self.finetune or () if name not in own]:
            raise ConfigError(f"train.finetune.{unknown[0]}: no such key; {near(unknown[0], own)}")
        return replace(self, finetune=None, **self.finetune) if self.finetune else self

    def optimizer_for(self, parameters: list[nn.Parameter], biases: Collection[nn.Parameter] = ()) -> Optimizer:
        """The optimiser of some parameters, of which `biases` are those that `bias_rate` is for."""
        fast = {id(p) for p in biases} if self.bias_rate != 1 else set()
        groups: list[dict[str, Any]] = [{"params": [p for p in parameters if id(p) not in fast]}]
        if chosen := [p for p in parameters if id(p) in fast]:
            rates = {"lr": self.lr * self.bias_rate, "weight_decay": self.weight_decay / self.bias_rate}
            groups.append({"params": chosen, **rates})
        if self.optimizer == "sgd":
            nesterov = self.nesterov and self.momentum > 0
            options = {"momentum": self.momentum, "nesterov": nesterov, "weight_decay": self.weight_decay}
            return torch.optim.SGD(groups, self.lr, fused=True, **options)
        return torch.optim.AdamW(groups, self.lr, weight_decay=self.weight_decay, fused=True)

    def factor(self, step: int, steps: int) -> float:
        """Learning-rate factor in [0, 1] at `step` of `steps`."""
        warm = max(1, round(self.warmup * steps))
        if self.warmup and step < warm:
            return (step + 1) / warm
        if self.schedule == "cosine":
            start = warm if self.warmup else 0
            return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))
        if self.schedule == "linear":
            start = warm if self.warmup else 0
            return 1 - (step - start) / max(1, steps - start)
        if self.schedule == "step":
            return self.gamma ** sum(step >= m * steps for m in self.milestones)
        return 1.0

    def autocast(self, device: torch.device) -> torch.autocast:
        """What a forward pass runs under. `auto` is for bench.precision.resolved to replace: here it is float32."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


@dataclass(frozen=True)
class Fit:
    """The training loop of bench.types.Fit.

    `may_diverge`: an attacker may ruin its copy, which then is a row; an owner may not, which is an error.
    `say` hears of epochs, at most every few seconds, `progress` of steps under the name `what`, and `log` of each
    epoch's number and mean loss, where that is read anyway. `checkpoint` keeps what a stage has trained so far.
    """

    train: Train
    seed: int
    may_diverge: bool = False
    say: Say | None = None
    what: str = "training"
    progress: Progress = unseen
    log: Callable[[int, float], None] | None = None
    checkpoint: Checkpoint | None = None

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
        state: Sequence[Any] = (),
        **schedule: Any,
    ) -> Iterator[int]:
        config = replace(self.train, **schedule)
        # Methods' own losses reach into the network by name, which a compiled one does not have.
        forward = torch.compile(model) if config.compile and loss is None else model
        loss = loss or task.loss
        device = next(model.parameters()).device
        optimizer = config.optimizer_for(_select(model, only), _norm_biases(model))
        rates = [group["lr"] for group in optimizer.param_groups]
        per_epoch = max(1, task.size(task.train) // config.batch_size)
        taken, steps = 0, per_epoch * config.epochs
        precision, last = config.autocast(device), last_layout(model, config, device)
        spoke, done = time.monotonic(), 0
        if self.checkpoint:
            # Where the parameters lie while they train: there the optimiser's state belongs.
            _lay(model, last)
            done = self.checkpoint.restored(model, optimizer, state)
            _lay(model, last, back=True)
        if done:
            (self.say or silent)(f"  going on after epoch {done} of {config.epochs}, kept when it was stopped")
            taken = done * per_epoch
        with self.progress(self.what, steps) as stepped:
            for _ in range(taken):
                stepped()
            for epoch in range(done + 1, config.epochs + 1):
                _train_mode(model, only)
                _lay(model, last)
                # Dropout and stochastic depth draw from the global generator: seeded each epoch, they
                # do not depend on what anybody else drew in between.
                torch.manual_seed(spec.derive(self.seed, "layers", epoch))
                total = torch.zeros((), device=device)
                for batch in task.batches(task.train, config.batch_size, spec.derive(self.seed, "batches", epoch)):
                    factor, taken = config.factor(taken, steps), taken + 1
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                    with precision:
                        value = loss(forward, batch)
                    if penalty is not None:
                        value = value + penalty(model)
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()
                    optimizer.step()
                    if step is not None:
                        with torch.no_grad():
                            step(model)
                    total += value.detach()
                    stepped()
                model.eval()
                _lay(model, last, back=True)
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
                if self.checkpoint:
                    self.checkpoint.offer(epoch, model, optimizer, state)
                yield epoch
        model.eval().requires_grad_(True)


def _select(model: nn.Module, only: Collection[str] | None) -> list[nn.Parameter]:
    model.requires_grad_(only is None)
    if only is None:
        return list(model.parameters())
    parts = [model.get_submodule(name).requires_grad_(True) for name in only]
    return [p for part in parts for p in part.parameters()]


def _norm_biases(model: nn.Module) -> list[nn.Parameter]:
    """Biases of normalisation layers whose scales do not train. Where they do, and a ReLU follows, biases at 64 times
    the rate kill every unit: resnet18_mid fell to chance in its second epoch."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
    layers = [m for m in model.modules() if isinstance(m, kinds) and m.bias is not None]
    return [m.bias for m in layers if not isinstance(m.weight, nn.Parameter)]


def last_layout(model: nn.Module, config: Train, device: torch.device) -> bool:
    """Whether to train in channels_last a network that is not: on a CPU, for bfloat16 is quick in that layout only
    (benchmarks/layout.py). Between epochs it is as it was, so that no measurement is rounded otherwise."""
    half = config.precision == "bfloat16" and device.type == "cpu"
    return half and anatomy.convolutional(model) and not anatomy.of(model).channels_last


def _lay(model: nn.Module, last: bool, back: bool = False) -> None:
    if last:
        model.to(memory_format=torch.contiguous_format if back else torch.channels_last)


def _train_mode(model: nn.Module, only: Collection[str] | None) -> None:
    model.train(only is None)
    for name in only or ():
        model.get_submodule(name).train()
