"""The training loop."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from bench import run, spec, stages
from bench.train import Fit
from tests.helpers import config, tiny


def test_learning_rate_factors():
    train = spec.build(config("train.warmup=0.1", "train.schedule=cosine").train, "train")
    factors = [train.factor(i, 100) for i in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    steps = spec.build(
        config("train.warmup=0", "train.schedule=step", "train.milestones=[0.5,0.75]", "train.gamma=0.1").train, "train"
    )
    assert [steps.factor(i, 100) for i in (0, 49, 50, 75, 99)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_fit_is_the_plain_loop(results):
    """Against a loop written out by hand: same batches, same optimiser, same weights, bit for bit."""
    x = run.prepare(tiny(results, "none", "none", "train.epochs=2", "train.schedule=constant", "train.warmup=0"))
    task = x.task.view("owner")
    a, b = stages.fresh(x), stages.fresh(x)
    Fit(x.train, 7)(a, task)
    optimizer = torch.optim.AdamW(b.parameters(), x.train.lr, weight_decay=x.train.weight_decay, fused=True)
    for epoch in (1, 2):
        b.train()
        torch.manual_seed(spec.derive(7, "layers", epoch))
        for images, labels in task.batches("owner", 64, spec.derive(7, "batches", epoch)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(b(images), labels).backward()
            optimizer.step()
    b.eval()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.slow
@pytest.mark.quick
def test_a_compiled_network_is_trained_in_place(monkeypatch, results):
    # Traced, and run as traced: what the compiler itself makes of it takes minutes on a CPU and rounds differently.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    x = run.prepare(tiny(results, "none", "none", "train.epochs=2"))
    plain, compiled = stages.fresh(x), stages.fresh(x)
    fit = Fit(x.train, 0)
    fit(plain, x.task.view("owner"))
    fit.using(compile=True)(compiled, x.task.view("owner"))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, msg=name)


def test_fit_hooks(results):
    x = run.prepare(tiny(results, "none", "none", "train.epochs=1"))
    calls = {"penalty": 0, "step": 0}

    def penalty(model):
        calls["penalty"] += 1
        return 0 * model.input_mean.sum()

    def step(model):
        calls["step"] += 1

    epochs = list(Fit(x.train, 0).epochs(stages.fresh(x), x.task.view("owner"), penalty=penalty, step=step, epochs=3))
    assert epochs == [1, 2, 3]
    assert calls["penalty"] == calls["step"] == 3 * (x.task.size("owner") // 64)
