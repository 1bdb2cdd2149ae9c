"""Classification: what counts and what is not read."""

from __future__ import annotations

import math

import torch

from bench import run, stages
from tests.helpers import tiny


def test_distillation_reads_no_labels(marked):
    x, _, _ = marked("uchida")
    task = x.task.view("owner")
    images, labels = next(task.batches("owner", 32, 0))
    a, b = stages.fresh(x).eval(), stages.load_weights(stages.fresh(x), stages.host(x).path)
    assert torch.equal(task.distill(a, b, (images, labels)), task.distill(a, b, (images, labels * 0 - 1)))


def test_outputs_that_are_no_numbers_are_wrong(results):
    x = run.prepare(tiny(results, "none", "none"))
    net = stages.fresh(x)
    with torch.no_grad():
        net.get_submodule(x.task.head(net)).bias.fill_(math.nan)
    assert x.task.utility(net) == 0.0
