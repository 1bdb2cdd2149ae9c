"""Distillation: a student learns from outputs alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from bench import judge, spec
from bench.errors import ConfigError
from tests.helpers import build_attack, changed, snapshots, victim


def test_a_student_learns_from_outputs_and_starts_afresh(marked):
    x, model, key = marked("uchida", "distill", "attack.snapshots=[1]")
    calls = []
    teacher = copy.deepcopy(model)
    teacher.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    (same, other) = snapshots(x, teacher, None)
    assert calls
    assert same[0] == "epoch/same"
    assert other[0] == "epoch/mobilenetv3_small"
    assert set(same[2].state_dict()) == set(model.state_dict())
    assert changed(model, same[2])["layer4.0.conv1.weight"] == 1.0
    # Another architecture has nothing to read: chance, not a crash.
    assert judge.judged(x, other[2], key)[0] == 0.5


def test_a_students_labels_are_the_victims(marked, monkeypatch):
    from bench.tasks.classification import ClassificationTask

    x, model, _ = marked("uchida", "distill", "attack.snapshots=[1]", "attack.student=null")
    monkeypatch.setattr(ClassificationTask, "loss", lambda *a: pytest.fail("labels were read"))
    assert [knob for knob, *_ in snapshots(x, model, None)] == ["epoch/same"]


class Recorded:
    """A loop that keeps the loss it is given."""

    def epochs(self, model, task, loss, **how):
        self.model, self.loss = model, loss
        yield 1


def gradient(x, model, *words):
    """(gradient of the loss at a student's logits [8, C], the student's and the victim's, labels)."""
    attack = build_attack("distill", "attack.snapshots=[1]", "attack.student=null", *words)
    given = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    batch = next(x.task.view("attacker").batches("attacker", 8))

    class Student(nn.Module):
        def forward(self, images):
            return given

    loop = Recorded()
    next(attack.run(victim(x, model, None, fresh=lambda seed: Student()), np.random.default_rng(0), loop))
    (slope,) = torch.autograd.grad(loop.loss(loop.model, batch), given)
    with torch.no_grad():
        return slope, given.detach(), model(batch[0]), batch[1]


def test_a_gradient_at_a_temperature_is_hintons_times_its_square(marked):
    x, model, _ = marked("uchida")
    for t in (1.0, 3.0):
        slope, student, teacher, _ = gradient(x, model, f"attack.temperature={t}")
        wanted = t * ((student / t).softmax(1) - (teacher / t).softmax(1)) / 8
        assert torch.allclose(slope, wanted, atol=1e-6)
    slope, student, teacher, labels = gradient(x, model, "attack.temperature=1", "attack.alpha=0.25")
    hard = nn.functional.one_hot(labels, 10)
    wanted = (student.softmax(1) - 0.25 * teacher.softmax(1) - 0.75 * hard) / 8
    assert torch.allclose(slope, wanted, atol=1e-6)
    with pytest.raises(ConfigError, match="temperature"):
        build_attack("distill", "attack.temperature=0")


def test_without_temperature_a_run_is_the_one_that_was(marked):
    x, _, _ = marked("uchida", "distill")
    y, _, _ = marked("uchida", "distill", "attack.temperature=3")
    assert not {"temperature", "alpha"} & set(spec.canonical(x.attack))
    assert spec.canonical(y.attack)["temperature"] == 3
    assert spec.canonical(x.attack)["class"] == "attacks.distill.Distill"
