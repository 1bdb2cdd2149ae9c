"""Distillation: a student learns from outputs alone."""

from __future__ import annotations

import copy

import pytest

from bench import judge
from tests.helpers import changed, snapshots


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

    monkeypatch.setattr(ClassificationTask, "loss", lambda *a: pytest.fail("labels were read"))
    x, model, _ = marked("uchida", "distill", "attack.snapshots=[1]", "attack.student=null")
    assert [knob for knob, *_ in snapshots(x, model, None)] == ["epoch/same"]
