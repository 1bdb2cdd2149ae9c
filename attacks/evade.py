"""A service that looks at each query, and answers otherwise where it is unlike what it is there for.

Hitaj, Hitaj, Mancini: Evasion attacks against watermarking techniques found in MLaaS systems (SDS 2019); Namba, Sakuma:
Robust watermarking of neural network with exponential weighting (AsiaCCS 2019), "query modification".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import among, within
from bench.types import Attack, Fit, Snapshot, Task, Victim

NEIGHBOURS = 5

Score = Callable[[Tensor, Tensor], Tensor]  # of what the head is given [N, D] and logits [N, C], [N]: high is unlike


@dataclass(frozen=True)
class Evade(Attack):
    """The network with its weights as they are; a query that a detector flags gets its second class in place of its
    first (Hitaj et al.: a random one, which is right by chance).

    detectors, each on what the head is given, x, or on the logits: `mahalanobis`, the least distance to the mean of a
    class, one covariance for all (Lee et al., NeurIPS 2018); `knn`, the distance of x / |x| to the fifth nearest (Sun
    et al., ICML 2022); `energy`, -log sum exp (Liu et al., NeurIPS 2020); `softmax`, less the largest probability
    (Hendrycks and Gimpel, ICLR 2017). They are fitted on half of the attacker's pictures, with the classes that the
    network names: no label is read. rates: of the other half so many may be flagged, as a picture like them then is in
    at most so many of cases (conformal: of m scores the ceil((m + 1)(1 - rate))-th least is the bound).
    """

    needs_data = True

    detectors: list[str] = among("mahalanobis", "knn", "energy", "softmax")
    rates: list[float] = within(1e-6, 0.5)

    def skip(self, victim: Victim) -> str | None:
        named = victim.task.gives == "classes" and victim.task.head(victim.model) is not None
        return None if named else "the network names no class in place of which another could be"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        head = victim.task.head(victim.model)
        x, logits = seen(copy.deepcopy(victim.model), head, victim.task, fit.train.batch_size)
        order = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        (x, held), (logits, answers) = (part[order].tensor_split([len(x) // 2]) for part in (x, logits))
        for name in self.detectors:
            score = fitted(name, x, logits.argmax(1))
            scores = score(held, answers).sort().values
            for rate in self.rates:
                rank = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
                if rank > len(scores):
                    why = f"{len(scores)} pictures held out show no rate below {1 / (len(scores) + 1):.2g}"
                    yield Snapshot(name, rate, victim.model, skipped=why)
                    continue
                guard = Guard(score, float(scores[rank - 1]))
                yield Snapshot(name, rate, guard.put(copy.deepcopy(victim.model), head))


@dataclass
class Guard:
    """Hooks of a network in evaluation mode, no weight renamed: what scores above `bound` gets its second class."""

    score: Score
    bound: float
    given: Tensor | None = None

    def put(self, model: nn.Module, head: str) -> nn.Module:
        """In place."""
        model.get_submodule(head).register_forward_pre_hook(self.look)
        model.register_forward_hook(self.answer)
        return model

    def look(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.given = pooled(args[0])

    def answer(self, module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        if module.training:
            return logits
        flagged = (self.score(self.given, logits.detach()) > self.bound)[:, None]
        top = logits.topk(2, 1)
        return logits.scatter(1, top.indices, torch.where(flagged, top.values.flip(1), top.values))


@torch.no_grad()
def seen(model: nn.Module, head: str, task: Task, batch_size: int) -> tuple[Tensor, Tensor]:
    """(what the head is given [N, D], logits [N, C]) of the split that a role trains on."""
    given: list[Tensor] = []
    model.get_submodule(head).register_forward_pre_hook(lambda module, args: given.append(pooled(args[0])))
    logits = [model(task.inputs(batch)) for batch in task.batches(task.train, batch_size)]
    return torch.cat(given), torch.cat(logits)


def pooled(x: Tensor) -> Tensor:
    """What a head is given as one vector a picture, [B, D]: the mean over places of maps, or of tokens."""
    x = x.detach().float()
    return x.mean((2, 3)) if x.dim() == 4 else x.mean(1) if x.dim() == 3 else x


def fitted(name: str, x: Tensor, classes: Tensor) -> Score:
    """A detector, fitted to features [N, D] of pictures that are named so, [N]."""
    if name == "mahalanobis":
        means = torch.stack([x[classes == c].mean(0) for c in classes.unique()])
        centred = x - means[(classes[:, None] == classes.unique()).int().argmax(1)]
        # Fewer pictures than features, mostly: shrunk as the pictures themselves say (Ledoit and Wolf 2004).
        shrunk = LedoitWolf(assume_centered=True).fit(centred.double().cpu().numpy())
        whiten = torch.from_numpy(np.linalg.cholesky(shrunk.precision_)).to(x)
        return partial(_mahalanobis, whiten, means @ whiten)
    return {"knn": partial(_knn, functional.normalize(x)), "energy": _energy, "softmax": _softmax}[name]


def _mahalanobis(whiten: Tensor, means: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    return torch.cdist(x @ whiten, means).min(1).values


def _knn(known: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    return torch.cdist(functional.normalize(x), known).kthvalue(min(NEIGHBOURS, len(known)), 1).values


def _energy(x: Tensor, logits: Tensor) -> Tensor:
    return -logits.float().logsumexp(1)


def _softmax(x: Tensor, logits: Tensor) -> Tensor:
    return -logits.float().softmax(1).max(1).values
