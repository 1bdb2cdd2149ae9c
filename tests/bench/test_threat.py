"""What an attacker is handed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from bench import run, stages, threat
from bench.data.pixels import seen
from tests.helpers import config, restoration, tiny


def test_a_service_shows_nothing_but_pictures(results, picture_folder):
    small = ("method=boxfree", "method.depth=2", "method.n_bits=16", "attack=surrogate", f"results_dir={results}")
    x = run.prepare(config(*restoration(picture_folder), *small))
    model = stages.skeleton(x)
    robbed = threat.stolen(x, model, x.method.keygen(model, np.random.default_rng(0), x.task))
    assert isinstance(robbed.model, threat.Service)
    assert {name: tensor.numel() for name, tensor in robbed.model.named_buffers()} == {"place": 0}
    with pytest.raises(PermissionError, match=r"attack\.knows"):
        next(robbed.model.parameters())
    assert [*robbed.model.modules()] == [robbed.model]
    assert not any(isinstance(value, nn.Module) for value in vars(robbed.model).values())
    assert (robbed.key, robbed.where) == (None, None)
    images = x.task.example(3) + torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(robbed.model(images), seen(model.eval()(images)))
    for split in ("owner", "test"):
        with pytest.raises(PermissionError):
            next(robbed.task.batches(split, 4))
    opened = run.prepare(config(*restoration(picture_folder), *small, "method.absorbed=true"))
    assert isinstance(threat.stolen(opened, model, None).model, threat.Service)  # the attack knows outputs alone
    known = [*small, "method.absorbed=true", "attack.knows=[outputs,weights]"]
    opened = run.prepare(config(*restoration(picture_folder), *known))
    assert threat.stolen(opened, model, None).model is model


def test_an_attack_on_outputs_that_touches_parameters_raises(results):
    """Handing the network itself to whoever knows `outputs` made the threat model a word."""
    x = run.prepare(tiny(results, "uchida", "distill"))
    model = stages.skeleton(x).eval()
    robbed = threat.stolen(x, model, None)
    images = x.task.example(3)
    with torch.no_grad():
        assert torch.equal(robbed.model(images), model(images))
    assert not robbed.model(images).requires_grad
    for touch in (
        lambda m: next(m.parameters()),
        lambda m: dict(m.named_parameters()),
        lambda m: m.state_dict(),
        lambda m: m.get_parameter("conv1.weight"),
        lambda m: next(copy.deepcopy(m).parameters()),
    ):
        with pytest.raises(PermissionError):
            touch(robbed.model)


def test_labels_are_all_that_an_attacker_of_labels_is_given(results):
    x = run.prepare(tiny(results, "uchida", "distill"))
    model, images = stages.skeleton(x).eval(), x.task.example(3)
    given = threat.Service(model, "labels")(images)
    with torch.no_grad():
        assert torch.equal(given, model(images).argmax(1))
    assert given.dtype == torch.int64
