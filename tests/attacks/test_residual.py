"""Residuals: what all outputs share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from bench import spec
from bench.types import Victim
from tests.helpers import config


def test_a_trace_that_is_the_same_everywhere_is_subtracted_exactly():
    attack = spec.build(config("task=restoration", "attack=residual", "attack.pairs=[8]").attack, "attack")
    trace, pictures = torch.zeros(3, 16, 16), torch.randint(20, 230, (40, 3, 16, 16)).to(torch.uint8)
    trace[:, 4:8, 4:8] = 9

    class Marked(nn.Module):
        def forward(self, images):
            return images.float() + trace

    def batches(split, size, seed):
        return iter([(pictures[:5], pictures[:5]), (pictures[5:], pictures[5:])])

    victim = Victim(Marked(), None, SimpleNamespace(train="attacker", batches=batches))
    snapshot = next(attack.run(victim, np.random.default_rng(0), None))
    assert torch.equal(snapshot.model(pictures), pictures.float())
    assert not torch.equal(victim.model(pictures), pictures.float())
