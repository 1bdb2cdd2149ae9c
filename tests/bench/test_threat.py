"""What an attacker is handed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench import run, stages, threat
from bench.data.pixels import seen
from tests.helpers import config, restoration


def test_a_service_shows_nothing_but_pictures(results, picture_folder):
    small = ("method=boxfree", "method.depth=2", "method.n_bits=16", "attack=surrogate", f"results_dir={results}")
    x = run.prepare(config(*restoration(picture_folder), *small))
    model = stages.skeleton(x)
    robbed = threat.stolen(x, model, x.method.keygen(model, np.random.default_rng(0)))
    assert isinstance(robbed.model, threat.Service)
    assert {name: tensor.numel() for name, tensor in robbed.model.state_dict().items()} == {"place": 0}
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
    assert not isinstance(threat.stolen(opened, model, None).model, threat.Service)
