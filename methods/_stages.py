"""The training stages of box-free watermarking (methods/boxfree.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import spec
from bench.data.pixels import seen
from bench.errors import within
from bench.models.discriminator import Discriminator
from bench.types import Fit, Task
from methods._barrier import BLANK, Barrier, Extractor, stretched

UNREAD = 0.25  # squared error of a reading that says nothing
VISIBLE = 12.0  # grey levels by which a square is lighter or darker before training


@dataclass(frozen=True)
class Recipe:
    """How a mark in pictures is trained: epochs, rates and weights of the stages; see Boxfree."""

    fidelity: float = within(0)
    target: float = within(0, ends="(]")
    gan: float = within(0)
    epochs: int = within(1)
    lr: float = within(0, ends="(]")
    surrogate: Any
    surrogates: int = within(1)
    surrogate_epochs: int = within(1)
    tune_epochs: int = within(1)
    tune_lr: float = within(0, ends="(]")
    absorb_epochs: int = within(1)


@dataclass(frozen=True)
class Stages:
    """What the training stages share; see Boxfree. mark: the logo, or None for random grids."""

    method: Recipe
    clean: nn.Module
    barrier: Barrier
    extractor: Extractor
    task: Task
    fit: Fit
    mark: Tensor | None

    def marks(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """Random grids, or the logo: [count, 1, S, S]."""
        if self.mark is not None:
            return self.mark.expand(count, *self.mark.shape)
        device, size = self.barrier.mark.device, self.barrier.mark.shape[-1]
        if rng is not None:
            return torch.randint(0, 2, (count, 1, size, size), generator=rng).float().to(device)
        return torch.randint(0, 2, (count, 1, size, size), device=device).float()

    def unmarked(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return seen(self.clean(images))

    def hidden(self, marks: Tensor) -> Callable[[Tensor], Tensor]:
        """The service with one mark, as a function of images."""

        def answer(images: Tensor) -> Tensor:
            outputs = self.clean(images)
            return outputs + self.barrier.change(outputs, marks.expand(len(images), *marks.shape[1:]))

        return answer

    def judge(self) -> Discriminator:
        """Its weights are those that follow a host's training, whether that was in this process or is in the cache."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.derive(self.fit.seed, "layers", self.fit.train.epochs))
            return Discriminator().to(self.barrier.mark.device)

    def initial(self) -> None:
        """Barrier, extractor, discriminator."""
        method, pair = self.method, nn.ModuleList([self.barrier, self.extractor])
        judge = self.judge() if method.gan else None
        if judge is not None:
            pair.append(judge)
        # From a barrier that changes nothing the extractor learns to say so, and many runs stay there: begin with
        # squares that anybody sees.
        nn.init.constant_(self.barrier.direct.weight, VISIBLE / 127.5)
        # Of the module that is trained, so that a checkpoint keeps it.
        pair.register_buffer("unread", torch.full((), UNREAD, device=self.barrier.mark.device))
        floor = 10 ** (-method.target / 10)

        def loss(_: nn.Module, batch: Any) -> Tensor:
            images = self.task.inputs(batch).float()
            outputs = self.unmarked(images)
            half = (len(images) + 1) // 2
            marks = self.marks(half).repeat(2, 1, 1, 1)[: len(images)]  # each on two pictures
            change = self.barrier.change(outputs, marks).float()
            made = (outputs + change).clamp(0, 255)
            stored = made + (made.round() - made).detach()
            found = self.extractor(torch.cat([stored, images[:half], outputs[half:]])).float()
            read, blank = found[: len(images)], found[len(images) :]
            error = functional.mse_loss(read, stretched(marks, read))
            pair.unread = 0.95 * pair.unread + 0.05 * error.detach()
            total = error + 2 * (blank - BLANK).square().mean()
            total = total + functional.mse_loss(read[: len(images) - half], read[half:])
            # A change that nobody can read yet must not be trained away.
            due = (1 - pair.unread / UNREAD).clamp(0, 1)
            total = total + due * method.fidelity * ((change / 255).square().mean() - floor).clamp(min=0)
            if judge is not None:
                told, lost = judge.losses(outputs, made)
                total = total + told + method.gan * lost
            return total

        self.fit.using(lr=method.lr, epochs=method.epochs, warmup=0.1)(pair, self.task, loss=loss)
        self.barrier.eval().requires_grad_(False)

    def adversarial(self) -> None:
        """Simulated surrogates, then the extractor alone."""
        method, fit, simulated = self.method, self.fit, []
        rng = torch.Generator().manual_seed(spec.derive(fit.seed, "simulated messages"))
        for i in range(method.surrogates):
            seed = spec.derive(fit.seed, "simulated", i)
            student = self.task.build(spec.build(method.surrogate, "method.surrogate"), seed)
            marks = self.marks(1, rng)
            learn = fit.seeded(seed).using(lr=method.lr, epochs=method.surrogate_epochs)

            def loss(model: nn.Module, batch: Any, marks: Tensor = marks) -> Tensor:
                return self.task.distill(model, self.hidden(marks), batch)

            simulated.append((learn(student, self.task, loss=loss).eval().requires_grad_(False), marks))

        def loss(extractor: nn.Module, batch: Any) -> Tensor:
            images = self.task.inputs(batch).float()
            outputs, marks = self.unmarked(images), self.marks(len(images))
            with torch.no_grad():
                stored = [seen(outputs + self.barrier.change(outputs, marks))]
                stored += [seen(student(images)) for student, _ in simulated]
            wanted = [marks, *(x.expand(len(images), *x.shape[1:]) for _, x in simulated)]
            found = extractor(torch.cat([*stored, images, outputs])).float().split(len(images))
            read = [functional.mse_loss(x, stretched(y, x)) for x, y in zip(found, wanted, strict=False)]
            blank = torch.cat(found[len(wanted) :])
            return sum(read) / len(read) + 2 * (blank - BLANK).square().mean()

        fit.using(lr=method.tune_lr, epochs=method.tune_epochs)(self.extractor, self.task, loss=loss)
        self.extractor.requires_grad_(False)

    def absorb(self, model: nn.Module) -> nn.Module:
        """`model`, trained to give the barrier's outputs and, read by the extractor as it is, the message."""
        marks = self.barrier.mark[None]
        service = self.hidden(marks)
        extractor = self.extractor.eval().requires_grad_(False)

        def loss(net: nn.Module, batch: Any) -> Tensor:
            images = self.task.inputs(batch).float()
            with torch.no_grad():
                target = seen(service(images))
            made = net(images).float()
            found = extractor(made + (made.round() - made).detach()).float()
            read = functional.mse_loss(found, stretched(marks, found).expand_as(found))
            return self.method.fidelity * ((made - target) / 255).square().mean() + read

        return self.fit(model, self.task, loss=loss, epochs=self.method.absorb_epochs)
