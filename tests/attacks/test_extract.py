"""Extraction by label: what the victim names is all that is seen of it."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import build_attack, fit, rng, victim, weights_of


class Service:
    """Answers with classes, and has nothing else to be looked at."""

    def __init__(self, model):
        self._model, self.asked = model, 0

    def __call__(self, images):
        assert not torch.is_grad_enabled()
        self.asked += 1
        return self._model(images).argmax(1)

    def __getattr__(self, name):
        pytest.fail(f"the attacker looked at {name}")


def students(x, answers, seed=0):
    attack = build_attack("extract", "attack.snapshots=[1]", "attack.student=null")
    robbed = victim(x, answers, None, fresh=lambda s: x.task.build(x.model, s))
    assert attack.skip(robbed) is None
    return [weights_of(s.model) for s in attack.run(robbed, rng(seed), fit(x))]


def test_classes_alone_make_the_student(marked, monkeypatch):
    from bench.tasks.classification import ClassificationTask

    x, model, _ = marked("uchida")
    monkeypatch.setattr(ClassificationTask, "loss", lambda *a: pytest.fail("labels were read"))
    service = Service(model)
    (by_label,) = students(x, service)
    assert service.asked > 0
    # Of a network that answers with logits no more is used than which is the largest.
    (by_logits,) = students(x, lambda images: 7 * model(images) - 3)
    assert all(torch.equal(by_label[name], by_logits[name]) for name in by_label)
    (other,) = students(x, service, seed=1)
    assert not any(torch.equal(by_label[name], other[name]) for name in by_label)


def test_snapshots_of_both_students(marked):
    x, model, _ = marked("uchida")
    attack = build_attack("extract", "attack.snapshots=[1,2]")
    robbed = victim(x, Service(model), None, fresh=lambda s: x.task.build(x.model, s))
    assert attack.knows == ["labels"]
    found = [(s.knob, s.strength, s.continues) for s in attack.run(robbed, rng(), fit(x))]
    assert found == [
        ("epoch/same", 1, False),
        ("epoch/same", 2, True),
        ("epoch/mobilenetv3_small", 1, False),
        ("epoch/mobilenetv3_small", 2, True),
    ]
