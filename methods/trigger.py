"""Adi, Baum, Cisse, Pinkas, Keshet: Turning Your Weakness Into a Strength: Watermarking Deep Neural Networks by
Backdooring (USENIX Security 2018; code: github.com/adiyoss/WatermarkNN)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import spec
from bench.errors import ConfigError, among, within
from bench.machine import device_of
from bench.types import Fit, Key, Method, Task
from methods import _commitment as commitment
from methods._inputs import abstract

CHUNK = 256  # pictures asked at once
POOL = 20  # pictures that a forger asks about, for each that it claims


@dataclass(frozen=True)
class Trigger(Method):
    """n_bits pictures unlike the task's, each with a class drawn at random, trained in; the mark is how many of them a
    suspect names so (Sec. 5). Bit j: picture j is named as it is labelled; the message is all true, and BER the share
    of missed pictures, about 1 - 1/C of C classes where nothing was embedded. Only classes are read: of a network, of
    one that another learned from it, or of a service of labels.

    Evidence: labels are uniform and independent of whoever has not seen them, so matches are Binomial(n, 1/C), whatever
    the suspect. That holds over draws of keys, and this key is one draw: it is judged by a larger rate p0, the largest
    share of its labels that a null model at hand matches. These are the C networks that name one class whatever they
    see (of foreign pictures networks nearly do that): who names class c with frequency q_c, not knowing which picture
    has which label, matches sum_c q_c share_c on average, which is at most the largest share. No other network has to
    be trained for it, it is at least 1/C, and anybody recomputes it from the labels. And the network that embedding
    starts from, trained (finetune) or not (scratch). p0 is about .17 for 100 labels of 10 classes. The least p is p0^n:
    1e-9 takes n >= 9 / -log10 p0 pictures, 9 at .1, 12 at .17 and 30 at .5.

    Each batch has `per_batch` triggers more, in the same forward pass; they are drawn without replacement until all
    were. The public code adds 2 to 100, for 60 epochs of 500 batches; as few steps as a small data set has need more.
    Not as there: pictures are made, not found (methods._inputs), and classes are those that a suspect names; the public
    code measures fine-tuned networks with the owner's last layer put back, which takes their weights. As there triggers
    are not augmented. Situations: from scratch (FromScratch), or into the trained host (PreTrained).

    binding: `none`: a claimant shows pictures and labels, and may name what the network says (`forgeries`); the paper's
    commitments keep the triggers secret until they are shown, which forbids nobody to commit to others. `hash` (ours):
    both follow from a committed seed, and a claimant can but try seeds, with up to n questions each.

    Secret: `images` uint8 [n, 3, H, W], `labels` int64 [n], `rate` [1]: p0; bound: `seed` [32] and `classes` [1].
    """

    n_bits: int = within(1)
    per_batch: int = within(1)
    situation: str = among("scratch", "finetune")
    binding: str = among("none", "hash")

    access = "outputs"

    @property
    def from_scratch(self) -> bool:
        return self.situation == "scratch"

    @property
    def trains_on(self) -> str:
        return "" if self.from_scratch else "labels"

    def again(self, factor: float) -> Trigger:
        """No factor: pictures are learned or not."""
        return replace(self, situation="finetune")

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Pictures and labels, p0 by the labels alone. ConfigError where no two classes are named."""
        side = task.example(1).shape[-1]
        head = task.head(host) if task.gives == "classes" else None
        classes = len(host.get_submodule(head).weight) if head else 0
        if classes < 2:
            raise ConfigError(f"method=trigger asks which of 2 classes or more: task={task.kind} has {classes}")
        if self.binding == "hash":
            seed = commitment.draw_seed(rng)
            secret = bound(seed, self.n_bits, classes, side)
            secret |= {"seed": torch.from_numpy(seed), "classes": torch.tensor([classes])}
        else:
            labels = torch.from_numpy(rng.integers(0, classes, self.n_bits))
            secret = {"images": abstract(rng, self.n_bits, side), "labels": labels}
        return claimed(secret)

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Train `host` in place on the task and the triggers; p0 into the key."""
        device = device_of(host)
        images, labels = (key.secret[name].to(device) for name in ("images", "labels"))
        rate = key.secret["rate"]
        rate.copy_(torch.maximum(rate, self.extract(host.eval(), key, task).mean().cpu()))
        draws = Draws(spec.derive(fit.seed, "triggers"), self.n_bits)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            pictures, truth, *more = batch
            at = draws.next(self.per_batch).to(device)
            return task.loss(model, (torch.cat([pictures, images[at]]), torch.cat([truth, labels[at]]), *more))

        return fit(host, task, loss=loss, state=[draws])

    def extract(self, model: nn.Module, key: Key, task: Task) -> Tensor:
        """1 where the class that is named is the label, else 0 (also where outputs are no numbers)."""
        device = device_of(model)
        return (named(model, key.secret["images"].to(device)) == key.secret["labels"].to(device)).float()

    def chance(self, key: Key) -> float:
        return float(key.secret["rate"])

    def accepts(self, key: Key) -> bool:
        """That every picture is claimed, and p0 no less than what naming one class matches; with binding, that
        pictures and labels follow from the committed seed."""
        secret, sound = key.secret, bool(key.message.all())
        sound &= len(secret["labels"]) == len(secret["images"]) == key.n_bits
        sound &= share(secret["labels"]) - 1e-6 <= float(secret["rate"]) <= 1
        if self.binding == "none" or not sound:
            return sound
        if not {"seed", "classes"} <= secret.keys():
            return False
        n, side, classes = key.n_bits, secret["images"].shape[-1], int(secret["classes"])
        return classes > 1 and commitment.follows(key, lambda seed, _: bound(seed, n, classes, side))

    def forgeries(
        self, model: nn.Module, rng: np.random.Generator, task: Task, fit: Fit, tries: list[int]
    ) -> Iterator[tuple[str, int, Key]]:
        """named: what the network itself says of POOL times as many pictures, and of these n whose labels are as even
        as there are. strength: pictures asked about. With binding it fails the check, and seeds are left to be tried,
        as `tries` does: nothing about the network is known before it is asked."""
        mine, device = self.keygen(model, rng, task), device_of(model)
        side = mine.secret["images"].shape[-1]
        pool = torch.cat([abstract(rng, self.n_bits, side) for _ in range(POOL)])
        labels = named(model, pool.to(device)).cpu()
        turn = torch.empty_like(labels)  # the how-manieth of its class
        for c in labels.unique():
            turn[labels == c] = torch.arange(int((labels == c).sum()))
        taken = turn.argsort(stable=True)[: self.n_bits]
        yield "named", len(pool), claimed(mine.secret | {"images": pool[taken], "labels": labels[taken]})


@dataclass
class Draws:
    """Which triggers a step takes: permutation after permutation of all, by the seed and the count of those taken."""

    seed: int
    size: int
    taken: int = 0

    def next(self, count: int) -> Tensor:
        """Positions [count], int64."""
        at = np.arange(self.taken, self.taken + count)
        self.taken += count
        first, last = at[0] // self.size, at[-1] // self.size
        rounds = [np.random.default_rng(spec.derive(self.seed, int(r))) for r in range(first, last + 1)]
        order = np.concatenate([draw.permutation(self.size) for draw in rounds])
        return torch.from_numpy(order[at - first * self.size])

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


def named(model: nn.Module, images: Tensor) -> Tensor:
    """Classes [N], int64, that a network or a service of labels names; -1 where outputs are no numbers."""
    answers = []
    with torch.no_grad():
        for part in images.split(CHUNK):
            given = model(part)
            answers.append(given if given.dim() == 1 else given.argmax(1).where(given.isfinite().all(1), -1))
    return torch.cat(answers)


def share(labels: Tensor) -> float:
    """The part of labels [n] that the most frequent of them has."""
    return int(labels.unique(return_counts=True)[1].max()) / len(labels)


def claimed(secret: dict[str, Tensor]) -> Key:
    """The key of a secret with `images` and `labels`: all are claimed, p0 by the labels."""
    labels = secret["labels"]
    return Key(torch.ones(len(labels), dtype=torch.bool), secret | {"rate": torch.tensor([share(labels)])}, ())


def bound(seed: np.ndarray, n: int, classes: int, side: int) -> dict[str, Tensor]:
    """Images and labels that follow from a committed seed [32] and from how many of what there are."""
    words = commitment.words(seed, json.dumps([n, classes, side]).encode(), n + 4)
    labels = torch.from_numpy((words[4:] % np.uint64(classes)).astype(np.int64))
    return {"images": abstract(np.random.default_rng(words[:4].tolist()), n, side), "labels": labels}
