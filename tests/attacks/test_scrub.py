"""Scrubbing: the layer that stands out, cleaned or reset."""

from __future__ import annotations

import copy

import pytest
import torch

from attacks.scrub import unfiltered
from bench import metrics, run
from bench.models import weights
from tests.helpers import changed, snapshots, tiny

RESET = "attack.snapshots=[1,3]"


def test_the_mean_filter_is_drawn_anew_and_nothing_else_changes():
    torch.manual_seed(0)
    w, z = torch.randn(64, 32, 3, 3), torch.randn(64, 32, 3, 3)
    new = unfiltered(w + torch.randn(1, 32, 3, 3), z)
    torch.testing.assert_close(new - new.mean(0), w - w.mean(0), atol=1e-5, rtol=1e-5)
    assert float(new.mean(0).std() * 8 / new.std()) == pytest.approx(1.41, abs=0.15)  # std before: sqrt(1 + 1)


def test_uchidas_layer_is_found_and_its_mark_goes(marked):
    x, model, key = marked("uchida", "scrub", RESET)
    before = copy.deepcopy(model.state_dict())
    (where,) = key.where
    made = {(knob, strength): m for knob, strength, m in snapshots(x, model, None)}
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in before.items())
    name = where.removesuffix(".weight")
    clean = made[f"mean filter/{name}", None]
    assert {n for n, share in changed(model, clean).items() if share} == {where}
    for at in ((f"mean filter/{name}", None), (f"reset/{name}", 0), (f"reset/{name}", 3)):
        error = metrics.ber(x.method.extract(made[at], key, x.task), key.message)
        assert 0.3 < error < 0.7, at
    assert x.task.utility(clean) > x.task.utility(model) - 5
    assert {n for n, share in changed(model, made[f"reset/{name}", 0]).items() if share} == {where}
    assert x.task.utility(made[f"reset/{name}", 3]) > x.task.utility(made[f"reset/{name}", 0]) - 1


def test_repeated_magnitudes_are_taken_wherever_they_are(marked):
    x, model, _ = marked("uchida", "scrub", RESET)
    planted = copy.deepcopy(model)
    name = [*weights.candidates(planted)][-1]
    with torch.no_grad():
        planted.get_parameter(name).view(-1)[::7] = 0.05
    found = {(knob, strength): m for knob, strength, m in snapshots(x, planted, None) if strength == 0}
    short = name.removesuffix(".weight")
    negated = found[f"repeated, negated/{short}", 0].get_parameter(name).view(-1)
    assert (negated[::7] == -0.05).all()
    others = torch.arange(len(negated)) % 7 != 0
    assert torch.equal(negated[others], planted.get_parameter(name).view(-1)[others])
    redrawn = found[f"repeated, redrawn/{short}", 0].get_parameter(name).view(-1)
    assert len(redrawn[::7].unique()) > 0.99 * len(redrawn[::7])


def test_watermas_repeats_no_magnitude_after_training_either(marked):
    x, model, _ = marked("watermas", "scrub", RESET)
    assert not [knob for knob, strength, _ in snapshots(x, model, None) if "repeated" in knob and strength is not None]


def test_a_module_is_where_a_mark_is_and_a_network_without_one_is_left_alone(marked, results):
    x, model, key = marked("frequency", "scrub", RESET)
    for knob, _, scrubbed in snapshots(x, model, None):
        if knob == "mean filter/watermark.conv":
            assert {n for n, share in changed(model, scrubbed).items() if share} == set(key.where)
            break
    else:
        pytest.fail("the module was not taken")
    outcome = run.run(tiny(results, "none", "scrub"))
    assert (outcome.status, outcome.rows[-1].error) == ("skipped", "nothing is marked that could be scrubbed")
