"""Adversarial training: how far inputs are moved, and to what end."""

from __future__ import annotations

import copy

import torch

from attacks.adversarial import attacked
from tests.helpers import build_attack, fit, rng, victim, weights_of


def test_inputs_move_within_their_bound_and_raise_the_loss(marked):
    x, model, _ = marked("uchida")
    task = x.task.view("attacker")
    batch = next(task.batches("attacker", 64))
    before, training = copy.deepcopy(model.state_dict()), model.training
    torch.manual_seed(0)
    moved = attacked(model.train(), task, batch, 0.1, 0.02, 10)
    assert model.training
    model.train(training)
    assert float((moved - batch[0].float()).abs().max()) <= 0.1 * 255 + 1e-3
    assert 0 <= float(moved.min()) < float(moved.max()) <= 255
    with torch.no_grad():
        clean, hurt = task.loss(model, batch), task.loss(model, (moved, batch[1]))
    assert float(hurt) > 2 * float(clean)
    assert torch.equal(attacked(model, task, batch, 0.0, 0.02, 2), batch[0].float())
    # No trace in the network: neither statistics nor gradients.
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in model.parameters())


def test_each_bound_starts_from_the_victim(marked):
    x, model, key = marked("uchida")
    words = ["attack.iterations=2", "attack.epochs=1"]

    def points(eps: str):
        attack = build_attack("adversarial", f"attack.eps={eps}", *words)
        return {s.strength: weights_of(s.model) for s in attack.run(victim(x, model, key), rng(), fit(x))}

    both, alone = points("[0.01,0.1]"), points("[0.1]")
    assert list(both) == [0.01, 0.1]
    assert all(torch.equal(both[0.1][name], alone[0.1][name]) for name in alone[0.1])
    assert any(not torch.equal(both[0.01][name], alone[0.1][name]) for name in alone[0.1])
