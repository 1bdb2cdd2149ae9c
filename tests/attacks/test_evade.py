"""A service that answers foreign queries otherwise."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from attacks.evade import Guard, fitted, pooled, seen
from bench import run, threat
from bench.errors import ConfigError
from tests.helpers import build_attack, config, facts, fit, restoration, tiny

DETECTORS = ["mahalanobis", "knn", "energy", "softmax"]


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_score_what_is_unlike_higher(name):
    draws = torch.Generator().manual_seed(0)
    centres = 8 * torch.eye(4, 16)
    classes = torch.arange(200) % 4
    x = centres[classes] + torch.randn(200, 16, generator=draws)
    score = fitted(name, x, classes)
    inside = centres[classes] + torch.randn(200, 16, generator=draws)
    outside = 3 * torch.randn(200, 16, generator=draws)
    logits = [part @ centres.T / 8 for part in (inside, outside)]
    low, high = (score(part, given) for part, given in zip((inside, outside), logits, strict=True))
    above = (high[:, None] > low[None]).float().mean()  # the AUC
    assert above > 0.8
    assert low.shape == (200,)


def test_mahalanobis_is_what_its_name_says():
    """With pictures enough nothing is shrunk: the least over classes, by the inverse covariance about class means."""
    draws = torch.Generator().manual_seed(1)
    mix = torch.randn(3, 3, generator=draws)
    classes = torch.arange(60_000) % 2
    x = torch.randn(60_000, 3, generator=draws) @ mix + 5.0 * classes[:, None]
    precision = torch.linalg.inv(mix.T @ mix)
    at = torch.randn(50, 3, generator=draws) * 4
    apart = torch.stack([at, at - 5.0])
    expected = torch.einsum("kni,ij,knj->kn", apart, precision, apart).min(0).values.sqrt()
    assert torch.allclose(fitted("mahalanobis", x, classes)(at, None), expected, rtol=0.05)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[3.0, 0], [2, 0], [1, 0]]))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(x)


def test_what_is_flagged_gets_its_second_class_and_nothing_else_changes():
    model = Small().eval()
    x = torch.tensor([[1.0, 0.0], [1.0, 9.0]])
    guarded = Guard(lambda given, logits: given[:, 1], 5.0).put(copy.deepcopy(model), "head")
    for net in (guarded, copy.deepcopy(guarded)):
        assert net(x).argmax(1).tolist() == [0, 1]
        assert torch.equal(net(x)[0], model(x)[0])
        assert torch.equal(net(x)[1], model(x)[1][[1, 0, 2]])
        assert net.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(guarded.train()(x), model(x))  # who trains it trains the network


def test_what_the_head_is_given_is_one_vector_a_picture():
    x = torch.randn(2, 5, 3, 4)
    assert torch.allclose(pooled(x), x.mean((2, 3)))
    assert torch.allclose(pooled(x.flatten(2).transpose(1, 2)), x.mean((2, 3)), atol=1e-6)


def test_no_more_of_the_pictures_held_out_are_flagged_than_was_asked(marked):
    x, model, key = marked("uchida", "evade")
    robbed = threat.stolen(x, model, key)
    held = np.random.default_rng(0).permutation(259)[129:]

    def classes(net):
        return torch.cat([net(images).argmax(1) for images, _ in x.task.batches("attacker", 64)])[held]

    plain = classes(model)
    for point in x.attack.run(robbed, np.random.default_rng(0), fit(x)):
        if point.skipped:
            assert point.strength < 0.02
            continue
        flagged = int((classes(point.model) != plain).sum())
        assert flagged == pytest.approx(130 - math.ceil(131 * (1 - point.strength)), abs=1)
        assert flagged <= 130 * point.strength
        before, after = model.state_dict(), point.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_features_are_what_the_head_is_given(marked):
    x, model, _ = marked("uchida", "evade")
    head = x.task.head(model)
    given, logits = seen(copy.deepcopy(model), head, x.task.view("attacker"), 50)
    assert len(given) == x.task.size("attacker")
    assert torch.allclose(model.get_submodule(head)(given), logits, atol=1e-4)


@pytest.mark.slow
def test_triggers_are_told_from_digits_and_a_mark_in_weights_stays(results):
    rows = {(r.knob, r.strength): r for r in run.run(tiny(results, "trigger", "evade")).rows if r.status == "ok"}
    row = rows["mahalanobis", 0.05]
    assert not row.detected
    assert row.utility_victim - row.utility < 8
    again = run.run(tiny(results, "trigger", "evade", "force=true")).rows
    assert facts(again) == facts(run.run(tiny(results, "trigger", "evade")).rows)
    kept = [r for r in run.run(tiny(results, "uchida", "evade")).rows[2:] if r.status == "ok"]
    assert {r.ber for r in kept} == {0.0}
    assert all(r.detected for r in kept)


def test_rates_that_the_pictures_cannot_show_are_said(results):
    rows = run.run(tiny(results, "uchida", "evade", "attack.detectors=[energy]", "attack.rates=[0.001]")).rows
    assert rows[-1].error == "130 pictures held out show no rate below 0.0076"


def test_networks_that_name_no_class_and_attackers_without_pictures(picture_folder, results):
    words = ("method=uchida", "method.n_bits=32", "attack=evade", f"results_dir={results}")
    rows = run.run(config(*restoration(picture_folder), *words, "verify.keys=0")).rows
    assert rows[-1].error == "the network names no class in place of which another could be"
    with pytest.raises(ConfigError, match=r"attack\.data=attacker"):
        build_attack("evade", "attack.data=none")
    with pytest.raises(ConfigError, match="detectors"):
        build_attack("evade", "attack.detectors=[odin]")
