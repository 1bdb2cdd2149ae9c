"""REFIT: the Fisher information, what it holds, and whose labels train."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attacks.elastic import fisher
from bench.tasks.classification import ClassificationTask
from tests.helpers import build_attack, fit, rng, victim


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 10, bias=False)
        self.idle = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.fc(images.float().flatten(1)[:, 1500:1504] / 255)


def test_the_fisher_information_of_a_linear_classifier_is_the_closed_form(marked):
    x, *_ = marked("uchida")
    task, model = x.task.view("attacker"), Linear()
    found = fisher(model, task, 30)
    images, _ = next(task.batches("attacker", 30))
    inputs = images.float().flatten(1)[:, 1500:1504] / 255
    logits = model(images).detach()
    error = logits.softmax(1) - nn.functional.one_hot(logits.argmax(1), 10)
    wanted = torch.einsum("bc,bi->ci", error.square(), inputs.square())
    assert torch.allclose(found["fc.weight"], wanted / wanted.max(), atol=1e-5)
    assert found["idle"].tolist() == [0.0]


def run(x, model, key, *words):
    words = ["attack.images=40", "attack.epochs=2", *words]
    attack = build_attack("elastic", *words)
    return {s.strength: copy.deepcopy(s.model) for s in attack.run(victim(x, model, key), rng(), fit(x))}


def test_a_larger_lambda_holds_what_matters(marked):
    x, model, key = marked("uchida")
    held = fisher(copy.deepcopy(model), x.task.view("attacker"), 40)
    made = run(x, model, key, "attack.lambdas=[0,10,40000]")

    def distance(other):
        now = dict(other.named_parameters())
        return sum(float((held[n] * (now[n] - p).square()).sum().detach()) for n, p in model.named_parameters())

    free, some, much = (distance(made[strength]) for strength in (0, 10, 40000))
    assert much < some < free
    assert all(torch.isfinite(p).all() for p in made[40000].parameters())


def test_without_a_penalty_it_is_fine_tuning_at_a_falling_rate(marked):
    x, model, key = marked("uchida")
    made = run(x, model, key, "attack.lambdas=[0]")[0]
    wanted = copy.deepcopy(model)
    how = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "epochs": 2, "warmup": 0.0}
    fit(x)(wanted, x.task.view("attacker"), schedule="step", gamma=0.9, milestones=[0.5], **how)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), wanted.parameters(), strict=True))


def test_images_without_labels_get_the_victims(marked, monkeypatch):
    x, model, key = marked("uchida")
    losses = ClassificationTask.loss
    seen = []

    def loss(self, net, batch):
        with torch.no_grad():
            seen.append(bool((model(batch[0]).argmax(1) == batch[1]).all()))
        return losses(self, net, batch)

    monkeypatch.setattr(ClassificationTask, "loss", loss)
    monkeypatch.setattr(ClassificationTask, "tensors", wrong(ClassificationTask.tensors))
    run(x, model, key, "attack.lambdas=[10]", "attack.labelled=false")
    assert seen
    assert all(seen)


def wrong(tensors):
    """Labels that are no good."""

    def drawn(self, split):
        images, labels, which = tensors(self, split)
        return images, (labels + 1) % 10, which

    return drawn


def test_bounds():
    from bench.errors import ConfigError

    with pytest.raises(ConfigError, match="decay"):
        build_attack("elastic", "attack.decay=2")
