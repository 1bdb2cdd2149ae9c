"""Detection: can a marked network be told from an unmarked one, and which layer carries the mark?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from attacks._layers import FEATURES, layers
from bench import metrics
from bench.errors import within
from bench.metrics import Knob
from bench.models import branches
from bench.types import Attack, Fit, Key, Snapshot, Victim

WRONG = 0.1  # bit error rate of shadow marks from which they are no marks
FLOOR = 0.05  # least standard deviation of a feature over the shadow hosts: FEATURES are of the order of 1
FOLDS = 5


@dataclass(frozen=True)
class Detect(Attack):
    """The attacker trains networks of the published architecture on its own data, without a mark and with one of the
    same method under keys of its own, `shadows` of each, and learns to tell them apart (property inference, Ganju et
    al., CCS 2018; of watermarks, Wang and Kerschbaum, WWW 2021).

    Features by layer (attacks._layers): standard deviation, mean filter, kurtosis, repeated magnitudes, quantiles. A
    logistic regression on all, cross-validated in five folds; its AUC with the interval of metrics.auc_interval, which
    takes the scores for independent. The layer named in a shadow mark is the one with the largest feature in standard
    deviations of the shadow hosts; `layer_chance` is how often a layer drawn at random is right.

    epochs: of each shadow, by the run's schedule. Where more than a tenth of the shadow marks' bits are wrong they are
    no marks, and the row says so.
    """

    knobs: ClassVar[dict[str, Knob]] = {"shadows": Knob("Shadow networks", None)}
    needs = ("weights", "method")
    needs_data = True

    shadows: int = within(2)
    epochs: int = within(1)

    def skip(self, victim: Victim) -> str | None:
        if not victim.method.marks:
            return "there is no mark to look for"
        return "the mark is read from outputs: weights do not show it" if victim.method.access == "outputs" else None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        names = [*layers(victim.model)]
        hosts, marks, right, errors = [], [], [], []
        for _ in range(self.shadows):
            hosts.append(seen(self._shadow(victim, rng, fit), names))
            model, key = self._mark(victim, rng, fit)
            marks.append(seen(model, names))
            errors.append(metrics.ber(victim.method.extract(model, key, victim.task), key.message))
            right.append([name in key.where for name in names])
        if (error := float(np.mean(errors))) > WRONG:
            why = f"the shadow marks are not embedded: BER {error:.2f} after {self.epochs} epochs; raise attack.epochs"
            yield Snapshot("shadows", self.shadows, victim.model, skipped=why)
            return
        auc, low, high = told_apart(np.stack(hosts), np.stack(marks), int(rng.integers(2**31)))
        named = [hit[i] for hit, i in zip(right, most_conspicuous(np.stack(hosts), np.stack(marks)), strict=True)]
        facts = {"auc": auc, "auc_low": low, "auc_high": high}
        facts |= {"layer_named": float(np.mean(named)), "layer_chance": float(np.mean(right))}
        yield Snapshot("shadows", self.shadows, victim.model, facts=facts)

    def _shadow(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> nn.Module:
        """An unmarked network, trained as long as a marked one: more epochs show as well."""
        model, trains = self._host(victim, rng, fit), victim.method.trains_on
        if trains:
            loss = {"loss": branches.own_outputs(model, victim.task)} if trains == "outputs" else {}
            model = fit.seeded(int(rng.integers(2**62)))(model, victim.task, epochs=self.epochs, **loss)
        return model

    def _host(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> nn.Module:
        model, seed = victim.fresh(int(rng.integers(2**62))), int(rng.integers(2**62))
        return fit.seeded(seed)(model, victim.task, epochs=self.epochs)

    def _mark(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> tuple[nn.Module, Key]:
        """As the owner does it: into an untrained network, or into one that was trained without the mark."""
        method, seed = victim.method, int(rng.integers(2**62))
        model = victim.fresh(seed) if method.from_scratch else self._host(victim, rng, fit)
        model = method.extend(model, victim.task, seed)
        key = method.keygen(model, rng, victim.task)
        longer = fit.seeded(int(rng.integers(2**62))).using(epochs=self.epochs)
        return method.embed(model, key, victim.task, longer).eval(), key


@torch.no_grad()
def seen(model: nn.Module, names: list[str]) -> np.ndarray:
    """Features [len(names), FEATURES]; of a layer that the model has not: 0."""
    found = layers(model)
    return np.stack([found[name].features if name in found else np.zeros(FEATURES) for name in names])


def told_apart(hosts: np.ndarray, marks: np.ndarray, seed: int) -> tuple[float, float, float]:
    """(AUC, ends of its 95% interval) of a cross-validated logistic regression; each [shadows, layers, features]."""
    x = np.concatenate([hosts, marks]).reshape(len(hosts) + len(marks), -1)
    y = np.repeat([0, 1], [len(hosts), len(marks)])
    folds = StratifiedKFold(min(FOLDS, len(hosts), len(marks)), shuffle=True, random_state=seed % 2**32)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_predict(classifier, x, y, cv=folds, method="decision_function")
    auc = float(roc_auc_score(y, scores))
    return (auc, *metrics.auc_interval(auc, len(marks), len(hosts)))


def most_conspicuous(hosts: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Of each mark the layer, a number, with the largest feature in standard deviations of the hosts."""
    spread = np.maximum(hosts.std(0, ddof=1), FLOOR)
    return np.abs((marks - hosts.mean(0)) / spread).max(2).argmax(1)
