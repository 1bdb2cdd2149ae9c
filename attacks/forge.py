"""Forging: a claim (key', message') on the untouched victim, made without training it.

What a verification without commitment is worth: where bits are read linearly through a secret that the claimant
simply shows, negating the parts of the secret whose bits come out wrong makes any message appear, and the forged
secret is distributed exactly as an honest one. Where a bit is read at a place that the claimant names, places that
happen to read right are put together from several honest keys. A message or secret bound by a hash breaks under all of
that, and has no gradient to follow; what is left is to try keys: t tries reach a p-value of about 1/t.
Where a mark is read from outputs by a network that is part of the key, anybody trains one that reads his own message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from attacks._reference import chosen
from bench import metrics, spec
from bench.errors import within
from bench.metrics import Knob
from bench.types import Attack, Fit, Key, Method, Snapshot, Victim


@dataclass(frozen=True)
class Forge(Attack):
    """Claims, each judged by the method's own verification with every check it prescribes.

    flip: negate the secret's slices of wrong bits (strength: none, no search). learn: `steps` Adam steps at rate `lr`
    on the secret alone, for a message fixed beforehand. splice: wrong bits' slices of the secret replaced by those of
    further honest keys, at most `draws` (strength: none). tries: honest keys drawn one after another; the best of
    the first t for each t in `tries`. grind: as many keys where the method's hash can be searched for less than honest
    draws cost (Method.forgeries). reference: an honest key, and the network that the judge is to put the victim's
    channels back by: the victim itself, in the order in which it reads that key's message. trained, for a mark in
    pictures, alone: an own secret, some `training` steps on what the victim gives for the attacker's inputs; that needs
    data. Of a mark in classes only tries and what the method knows (`named`): there are no weights to read.
    """

    knobs: ClassVar[dict[str, Knob]] = {
        "tries": Knob("Keys tried", None, log=True),
        "grind": Knob("Keys ground", None, log=True),
        "learn": Knob("Steps of learning", None),
    }
    needs = ("weights", "method", "layer")

    steps: list[int] = within(1, 10**6)
    lr: float = within(0, ends="(]")
    draws: int = within(1)
    tries: list[int] = within(1, 10**9)
    grind: list[int] = spec.later([], check=within(1, 10**9, empty=True))
    training: int = spec.later(300, check=within(1))

    def skip(self, victim: Victim) -> str | None:
        if not victim.method.marks:
            return "the method makes no claim that could be forged"
        if _in_pictures(victim) and self.data == "none":
            return "a claim on pictures is trained, on inputs of the attacker's: attack.data=attacker"
        return None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        if victim.method.access != "outputs":
            yield from self._weights(victim, rng)
        elif not _in_pictures(victim):
            yield from self._tried(victim, victim.method.keygen(victim.model, rng, victim.task), rng)
        known: set[str] = set()
        for knob, strength, claim in self._forgeries(victim, rng, fit):
            yield Snapshot(knob, strength, victim.model, claim=claim, continues=knob in known)
            known.add(knob)

    def _forgeries(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[tuple[str, int, Key]]:
        task = victim.task
        if _in_pictures(victim):
            fit = fit.using(epochs=math.ceil(self.training / max(1, task.size(task.train) // fit.train.batch_size)))
        return victim.method.forgeries(victim.model, rng, task, fit, sorted(self.grind))

    def _weights(self, victim: Victim, rng: np.random.Generator) -> Iterator[Snapshot]:
        """Claims that are read from weights."""
        model, method = victim.model, victim.method
        key = method.keygen(model, rng, victim.task)
        if method.logits(model, key) is None:
            why = "extraction is not differentiable"
            yield Snapshot("flip", None, model, skipped=why)
            yield Snapshot("learn", None, model, skipped=why)
        else:
            yield Snapshot("flip", None, model, claim=flipped(model, method, key))
            steps = 0
            for steps, claim in learned(model, method, key, sorted(self.steps), self.lr):
                yield Snapshot("learn", steps, model, claim=claim, continues=steps > min(self.steps))
            if not steps:
                yield Snapshot("learn", None, model, skipped="no part of the secret has a gradient")
        yield Snapshot("splice", None, model, claim=self._spliced(victim, key, rng))
        reference = None if method.logits(model, key) is None else chosen(model, method, key, victim.task.example(1))
        why = "" if reference else "no order of channels changes what the key reads"
        yield Snapshot("reference", None, model, claim=key, reference=reference, skipped=why)
        yield from self._tried(victim, key, rng)

    def _tried(self, victim: Victim, key: Key, rng: np.random.Generator) -> Iterator[Snapshot]:
        best, least = key, 2.0
        trials = victim.method.trials(victim.model, key, victim.model, rng, max(self.tries), victim.task)
        for count, (claim, soft) in enumerate(trials, 1):
            error = metrics.ber(soft, claim.message)
            if error < least:
                best, least = claim, error
            if count in self.tries:
                yield Snapshot("tries", count, victim.model, claim=best, continues=count > min(self.tries))

    def _spliced(self, victim: Victim, key: Key, rng: np.random.Generator) -> Key:
        method, model = victim.method, victim.model
        secret = {name: x.clone() for name, x in key.secret.items()}
        along = {name: dim for name, x in secret.items() if (dim := dimension(x, key.n_bits)) is not None}
        wrong = (method.extract(model, key, victim.task).cpu() > 0.5) != key.message
        for _ in range(self.draws if along else 0):
            if not wrong.any():
                break
            other = method.keygen(model, rng, victim.task)
            right = (method.extract(model, other, victim.task).cpu() > 0.5) == key.message
            for name, dim in along.items():
                taken = (wrong & right).nonzero()[:, 0]
                secret[name].index_copy_(dim, taken, other.secret[name].index_select(dim, taken))
            wrong &= ~right
        return replace(key, secret=secret)


def _in_pictures(victim: Victim) -> bool:
    """Whether the mark is read from pictures, by a network that is part of the key."""
    return victim.method.access == "outputs" and victim.task.gives == "pictures"


def dimension(x: torch.Tensor, n: int) -> int | None:
    """The one dimension of a secret that has a slice for each of n bits; None where there is none, or several."""
    found = [d for d in range(x.dim()) if x.shape[d] == n]
    return found[0] if len(found) == 1 else None


def learnable(model: nn.Module, method: Method, key: Key) -> dict[str, torch.Tensor]:
    """The parts of a secret that the logits have a gradient in, as leaves."""
    free = {k: x.clone().requires_grad_() for k, x in key.secret.items() if x.is_floating_point()}
    y = method.logits(model, replace(key, secret={**key.secret, **free}))
    if not free or not y.requires_grad:
        return {}
    slopes = torch.autograd.grad(y.sum(), list(free.values()), allow_unused=True)
    return {k: x for (k, x), slope in zip(free.items(), slopes, strict=True) if slope is not None}


@torch.no_grad()
def flipped(model: nn.Module, method: Method, key: Key) -> Key:
    """Negate the slices of floats or signs whose bits come out wrong, along the dimension of n that helps most."""

    def wrong(claim: Key) -> torch.Tensor:
        return (method.logits(model, claim).cpu() > 0) != claim.message

    sign = torch.where(wrong(key), -1.0, 1.0)
    claims = [key]
    for name, x in key.secret.items():
        for dim in range(x.dim() if x.is_floating_point() or x.dtype == torch.int8 else 0):
            if x.shape[dim] == key.n_bits:
                shape = [key.n_bits if d == dim else 1 for d in range(x.dim())]
                claims.append(replace(key, secret={**key.secret, name: x * sign.view(shape).to(x.dtype)}))
    return min(claims, key=lambda claim: int(wrong(claim).sum()))


def learned(model: nn.Module, method: Method, key: Key, checkpoints: list[int], lr: float) -> Iterator[tuple[int, Key]]:
    """Adam on the float secrets against the bits' cross-entropy; the model and the message stay as they are."""
    leaves = learnable(model, method, key)
    if not leaves:
        return
    claim, free = replace(key, secret={**key.secret, **leaves}), list(leaves.values())
    optimizer = torch.optim.Adam(free, lr)
    truth = key.message.float()
    for step in range(1, checkpoints[-1] + 1):
        loss = functional.binary_cross_entropy_with_logits(method.logits(model, claim).cpu(), truth, reduction="sum")
        # Not backward(): it would leave gradients on the victim's weights.
        for x, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
            x.grad = gradient
        optimizer.step()
        if step in checkpoints:
            yield step, replace(key, secret={k: x.detach().clone() for k, x in claim.secret.items()})
