"""Darvish Rouhani, Chen, Koushanfar: DeepSigns (ASPLOS 2019; arXiv 1804.00750; code:
github.com/Bitadr/DeepSigns), the white-box variant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import ConfigError, among, within
from bench.machine import device_of
from bench.models import weights
from bench.types import Fit, Key, Method, Task
from methods import _commitment as commitment
from methods._activations import activations, projected, rectified
from methods._inputs import abstract


@dataclass(frozen=True)
class Deepsigns(Method):
    """Bits in what one layer gives for the owner's own images of a few classes, on average.

    Of each of `classes` keyed classes c the key holds `per_class` training images (fewer, where there are fewer);
    mean_c in R^M is the mean of the layer's activations over them. The bits of c are the signs of mean_c A, A [M, N] of
    iid N(0, 1), N = n_bits / classes, one A for all classes. Capacity: N <= M. Embedding adds, summed over the classes,
    lambda1 ||mean_c - mu_c||^2 + lambda2 sum_j BCE(sigmoid((mu_c A)_j), b_cj); the centres mu are trained with the
    network, by Adam at mu_lr, from the classes' means before. The key's images pass once more in each step, in
    evaluation mode, as they do when the mark is read: they move no statistics, and what is marked is what is read.

    Ours: classes' means for the paper's Gaussian mixture (so do the public codes), no term that drives centres apart,
    the mean's distance from its centre and not each image's. An activation is what the module of the weight `key.where`
    gives, batch-normalised where that follows at once (before it, a channel could be shifted and its statistics with
    it) but before the rectifier, averaged over positions or tokens; the public codes flatten them, rectified. So the
    logits are affine in that weight, M is its number of outputs and A is small. The layer is not the second to last but
    the benchmark's (bench.models.weights), of those before an activation function: from a layer before a sum anybody
    takes the mark without data, by constants that one branch gives more and the other less. A claimant without data
    shows abstract pictures, one a class.

    binding (ours): `none`, as published: A and the images are whatever the claimant shows. `hash`: message and A follow
    from a committed 32-byte seed, the layer's name and the images, which verification recomputes. (The message too: who
    shows one picture for all classes reads every bit of a column alike, and could choose a message that repeats.)

    Secret: `projection` [M, N], `images` uint8 [classes * k, 3, H, W], class by class, `labels` [classes], -1 where
    they are of no class; `seed` [32] where bound.
    """

    access = "activations"
    signs = True
    tunable = True

    n_bits: int = within(1)
    classes: int = within(1)
    per_class: int = within(1)
    lambda1: float = within(0)
    lambda2: float = within(0)
    mu_lr: float = within(0)
    binding: str = among("none", "hash")
    situation: str = among("scratch", "finetune")
    layer: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_bits % self.classes:
            raise ConfigError(f"method.n_bits={self.n_bits} is no multiple of method.classes={self.classes}")

    @property
    def from_scratch(self) -> bool:
        return self.situation == "scratch"

    @property
    def trains_on(self) -> str:
        return "" if self.from_scratch else "labels"

    def again(self, factor: float) -> Deepsigns:
        return replace(self, situation="finetune", lambda1=factor * self.lambda1, lambda2=factor * self.lambda2)

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n] and secret. ConfigError where N > M, for fewer classes than asked for, or none."""
        return self._drawn(self._place(host, task), rng, task)[0]

    def _place(self, host: nn.Module, task: Task) -> tuple[str, tuple[int, int]]:
        """The marked weight, and the shape of A."""
        if task.gives != "classes":
            raise ConfigError("method=deepsigns marks classes, and this task has none: task=classification")
        n = self.n_bits // self.classes
        called = {id(w) for name, w in weights.weights(host).items() if not name.endswith("in_proj_weight")}
        before = (
            {id(host.get_parameter(name)) for name in rectified(host, task.example())} if not self.layer else called
        )
        large = any(len(w) >= n for w in weights.candidates(host).values() if id(w) in before)

        def capacity(weight: Tensor) -> int:
            return len(weight) if id(weight) in (before if large else called) else 0

        what = f"outputs, one for each of a class's {self.n_bits} / {self.classes} bits"
        name = weights.choose(host, self.layer, capacity, n, what)
        return name, (len(host.get_parameter(name)), n)

    def _drawn(self, place: tuple[str, tuple[int, int]], rng: np.random.Generator, task: Task) -> tuple[Key, Tensor]:
        """A key for a place, and the positions of its images among the task's; none for abstract ones."""
        (name, shape), (images, labels, at) = place, self._images(rng, task)
        if self.binding == "hash":
            seed = commitment.draw_seed(rng)
            message, projection = bound(seed, name, images, shape, self.n_bits)
            more = {"seed": torch.from_numpy(seed)}
        else:
            message = torch.from_numpy(rng.integers(0, 2, self.n_bits).astype(bool))
            projection, more = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)), {}
        return Key(message, {"projection": projection, "images": images, "labels": labels, **more}, (name,)), at

    def _images(self, rng: np.random.Generator, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Images of the key, their classes' labels, and their positions among the task's."""
        try:
            images, labels, index = task.tensors(task.train)
        except PermissionError:  # an outsider has none
            pictures = abstract(rng, self.classes, task.example().shape[-1])
            return pictures, torch.full((self.classes,), -1), torch.zeros(0, dtype=torch.int64)
        if labels.dim() != 1 or labels.is_floating_point():
            raise ConfigError("method=deepsigns marks classes, and these labels name none")
        index = index.cpu().numpy()
        own = labels.cpu().numpy()[index]
        found, counts = np.unique(own, return_counts=True)
        if len(found) < self.classes:
            raise ConfigError(f"method.classes={self.classes}, but the training data are of {len(found)}")
        taken = rng.choice(len(found), self.classes, replace=False)
        few = min(self.per_class, counts[taken].min())
        at = np.concatenate([rng.choice(index[own == found[c]], few, replace=False) for c in taken])
        at = torch.from_numpy(at)
        return images[at.to(images.device)].cpu(), torch.from_numpy(found[taken]), at

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Train `host` in place with the task's loss plus the penalty."""
        centres = Centres.of(self, host, key)
        return fit(host, task, penalty=centres.penalty, step=centres.step, state=[centres])

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        """The classes' mean activations, projected, [n]; 0 where the layer is not asked or the key does not fit it."""
        given = activations(model, key.where[0], key.secret["images"])
        return projected(given, key.secret["projection"], key.n_bits)

    @torch.no_grad()
    def extract(self, model: nn.Module, key: Key, task: Task) -> Tensor:
        """As `logits` says; every bit undecided for images that are not of the task's size."""
        if key.secret["images"].shape[1:] != task.example().shape[1:]:
            return torch.full((key.n_bits,), 0.5)
        return self.logits(model, key).sigmoid()

    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """The marked weight without what of its rows lies along what they are multiplied with, on average, for each
        class: logits are affine in it, and their slopes are just that."""
        weight = model.get_parameter(key.where[0])
        with torch.enable_grad():
            given = activations(model, key.where[0], key.secret["images"])
            sums = given.view(self.classes, -1).sum(1)
            slopes = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in sums]
        rows = weight.detach().flatten(1).double()
        seen = torch.stack(slopes, 1).flatten(2).double()  # [M, classes, inputs]
        read = rows[:, None] @ torch.linalg.pinv(seen) @ seen
        return {key.where[0]: (rows - read[:, 0]).view(weight.shape).float()}

    @torch.no_grad()
    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """Each of the task's images passes once, however many keys hold it."""
        given = known = torch.zeros(0, dtype=torch.bool)
        place = self._place(other, task)
        for _ in range(count):
            guess, at = self._drawn(place, rng, task)
            if not len(at):
                yield guess, self.extract(model, guess, task)
                continue
            if not len(known):
                size = len(task.tensors(task.train)[0])
                given = torch.zeros(size, len(guess.secret["projection"]), device=device_of(model))
                known = torch.zeros(size, dtype=torch.bool)
            if (new := ~known[at]).any():
                given[at[new]] = activations(model, guess.where[0], guess.secret["images"][new])
                known[at[new]] = True
            yield guess, projected(given[at], guess.secret["projection"], guess.n_bits).sigmoid()

    def accepts(self, key: Key) -> bool:
        """With binding, that message and projection are those of the committed seed, layer and images."""

        def made(seed: np.ndarray, message: np.ndarray) -> dict[str, Tensor]:
            shape = tuple(key.secret["projection"].shape)
            bits, x = bound(seed, key.where[0], key.secret["images"], shape, len(message))
            return {"message": bits, "projection": x}

        return self.binding == "none" or commitment.follows(key, made)


def bound(seed: np.ndarray, layer: str, images: Tensor, shape: tuple[int, int], n: int) -> tuple[Tensor, Tensor]:
    """(message [n], A of `shape`, iid N(0, 1)) from a committed seed, the layer's name and the images."""
    content = hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).digest() + layer.encode()
    bits = commitment.words(seed, content + b"message", n) >> np.uint64(63) == 1
    return torch.from_numpy(bits), commitment.normal(seed, content + b"projection", shape)


@dataclass
class Centres:
    """The centres mu [classes, M] and their optimiser: what a checkpoint keeps beside the model. images [classes * k,
    3, H, W], projection [M, N] and truth [classes, N] are the key's, on the device."""

    method: Deepsigns
    layer: str
    images: Tensor
    projection: Tensor
    truth: Tensor
    mu: Tensor
    optimizer: torch.optim.Adam

    @staticmethod
    def of(method: Deepsigns, host: nn.Module, key: Key) -> Centres:
        device = device_of(host)
        images, projection = (key.secret[name].to(device) for name in ("images", "projection"))
        truth = key.message.to(device, torch.float32).view(method.classes, -1)
        with torch.no_grad():
            given = activations(host, key.where[0], images)
        mu = given.view(method.classes, -1, given.shape[1]).mean(1).requires_grad_()
        adam = torch.optim.Adam([mu], method.mu_lr)
        return Centres(method, key.where[0], images, projection, truth, mu, adam)

    def penalty(self, model: nn.Module) -> Tensor:
        given = activations(model, self.layer, self.images)
        far = (given.view(len(self.mu), -1, given.shape[1]).mean(1) - self.mu).square().sum()
        wrong = functional.binary_cross_entropy_with_logits(self.mu @ self.projection, self.truth, reduction="sum")
        return self.method.lambda1 * far + self.method.lambda2 * wrong

    def step(self, model: nn.Module) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"mu": self.mu.detach(), **self.optimizer.state[self.mu]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        moments = {name: x if name == "step" else x.to(self.mu) for name, x in state.items() if name != "mu"}
        self.optimizer.state[self.mu] = moments
        with torch.no_grad():
            self.mu.copy_(state["mu"])
