"""Removal attacks on weights: noise, mean-filling, cutting, shifting, interception; and distillation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from attacks import intercept, meanfill
from bench import metrics, run, spec
from bench.train import Fit
from bench.types import ConfigError, Victim
from methods import layers
from tests.conftest import config, tiny


def snapshots(x, model, key, where=None):
    """(knob, strength, copy of the model, claim) of every snapshot."""
    task = x.task.view("attacker" if x.attack.data == "attacker" else "outsider")
    victim = Victim(model, x.method, task, fresh=lambda seed: x.task.build(x.model, seed), where=where, key=key)
    fit = Fit(x.train, 3, may_diverge=True)
    for s in x.attack.run(victim, np.random.default_rng(0), fit):
        yield s.knob, s.strength, copy.deepcopy(s.model)


def changed(before, after) -> dict[str, float]:
    """Share of each tensor's entries that differ."""
    old, new = before.state_dict(), after.state_dict()
    return {n: float((old[n] != new[n]).float().mean()) for n in old if n in new and old[n].shape == new[n].shape}


def test_noise_has_the_stated_scale_and_only_weights_get_it(marked):
    x, model, _ = marked("uchida", "noise", "attack.sigmas=[0.1,1.0]")
    made = list(snapshots(x, model, None))
    weights = layers.weights(model)
    for _, sigma, noisy in made:
        for name, w in weights.items():
            added = noisy.get_parameter(name) - w
            assert float((added.std() / w.std()).detach()) == pytest.approx(sigma, rel=0.15)
        assert {n for n, share in changed(model, noisy).items() if share} == set(weights)
    a, b = (m.get_parameter("layer4.0.conv1.weight") - model.get_parameter("layer4.0.conv1.weight") for *_, m in made)
    torch.testing.assert_close(10 * a, b, rtol=1e-3, atol=1e-6)  # one draw, two sizes


def test_noise_on_the_marked_layer_touches_no_other(marked):
    x, model, key = marked("uchida", "noise", "attack.scope=marked", "attack.knows=[weights,layer]")
    for *_, noisy in snapshots(x, model, None, where=key.where):
        assert {n for n, share in changed(model, noisy).items() if share} == set(key.where)
    with pytest.raises(ConfigError, match="needs to know the layer"):
        spec.build(config("attack=noise", "attack.scope=marked").attack, "attack")


def test_meanfill_fills_the_stated_fraction_and_costs_a_module_nothing(marked):
    x, model, key = marked("frequency", "meanfill", "attack.fractions=[0.5,1.0]")
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for _, fraction, filled in snapshots(x, model, None):
        w = filled.watermark.conv.weight
        flat = (w - w.mean((2, 3), keepdim=True)).abs().amax((2, 3)) < 1e-6
        assert float(flat.float().mean()) == pytest.approx(fraction, abs=0.05)
        assert {n for n, s in changed(model, filled).items() if s} == {"watermark.conv.weight"}
        # The theorem's other side: what training cannot reach, the function does not need.
        torch.testing.assert_close(filled(images), model(images), rtol=1e-3, atol=1e-4)
    assert not run.judge(x, filled, key)[2]


def test_meanfill_elsewhere_takes_every_spatial_kernel_and_hurts(marked):
    x, model, _ = marked("uchida", "meanfill", "attack.fractions=[1.0]")
    ((*_, filled),) = snapshots(x, model, None)
    assert all(w.weight.flatten(2).std(2).max() < 1e-6 for w in meanfill.spatial(filled))
    assert x.task.utility(filled) < x.task.utility(model) - 20


def test_a_cut_leaves_the_network_without_its_module(marked):
    x, model, key = marked("frequency", "cut", "attack.epochs=1")
    (_, zero, gone), (_, one, tuned) = snapshots(x, model, None)
    assert (zero, one) == (0, 1)
    assert set(gone.state_dict()) == set(run.fresh(x).state_dict())
    assert not any(share for name, share in changed(model, gone).items())
    assert run.judge(x, gone, key) == (0.5, metrics.log10_p(0.5, key.n_bits), False)
    assert any(changed(gone, tuned).values())


def test_shift_moves_filters_against_their_mean(marked):
    x, model, _ = marked("uchida", "shift", "attack.strengths=[0.5,1.0]", "attack.noise=0", "attack.epochs=0")
    for _, strength, shifted in snapshots(x, model, None):
        for name, w in layers.weights(model).items():
            torch.testing.assert_close(shifted.get_parameter(name), w - strength * w.mean(0, keepdim=True))


@pytest.mark.parametrize("method", ["uchida", "neuralmark", "frequency", "watermas"])
def test_interception_alters_what_the_key_points_at_and_nothing_else(marked, method):
    x, model, key = marked(method, "intercept", "attack.epochs=0")
    masks = intercept.pointed(copy.deepcopy(model), x.method, key)
    assert set(masks) <= set(key.where)
    if method == "watermas":
        assert sum(int(m.sum()) for m in masks.values()) == key.n_bits
    if method == "uchida":
        assert all(m.all() for m in masks.values())
    for knob, strength, altered in snapshots(x, model, key):
        shares = changed(model, altered)
        assert {n for n, share in shares.items() if share} <= set(key.where)
        for name, mask in masks.items():
            old, new = model.get_parameter(name), altered.get_parameter(name)
            assert torch.equal(old[~mask], new[~mask])
            if knob == "negated" and strength == 1:
                assert torch.equal(new[mask], -old[mask])
        error, _, ok = run.judge(x, altered, key)
        if knob == "zeroed":
            zeros = sum(int((altered.get_parameter(name)[mask] == 0).sum()) for name, mask in masks.items())
            assert zeros / sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(strength, abs=0.15)
        if knob == "negated" and strength == 1:
            assert (error, ok) == (1, False)  # an inverted message is not a detection
        if knob == "rewritten":
            assert 0.25 < error < 0.75


@pytest.mark.parametrize("method", ["uchida", "neuralmark", "frequency", "watermas"])
def test_a_rewritten_mark_reads_the_attackers_message_at_the_least_cost(marked, method):
    x, model, key = marked(method)
    new = np.random.default_rng(1).integers(0, 2, key.n_bits).astype(bool)
    other = copy.deepcopy(model)
    intercept.rewrite(other, x.method, key, new)
    assert metrics.ber(x.method.extract(other, key, x.task), torch.from_numpy(new)) == 0
    # No change with the same effect is smaller: compare with the pseudo-inverse.
    y = x.method.logits(model, key)
    weights = [w for w in (model.get_parameter(n) for n in key.where) if w.requires_grad]
    rows = []
    for unit in torch.eye(len(y)):
        slopes = torch.autograd.grad(y, weights, unit, retain_graph=True, allow_unused=True)
        full = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, slopes, strict=True)]
        rows.append(torch.cat([g.reshape(-1) for g in full]))
    a = torch.stack(rows).double()
    sign = torch.from_numpy(new).double() * 2 - 1
    least = torch.linalg.pinv(a) @ (sign * y.abs().median() - y).double()
    moved = torch.cat([(other.get_parameter(n) - model.get_parameter(n)).detach().reshape(-1) for n in key.where])
    assert float(moved.norm()) == pytest.approx(float(least.detach().norm()), rel=0.01)


def test_interception_without_a_key_says_so(results):
    rows = run.run(tiny(results, "none", "intercept")).rows
    assert rows[-1].status == "skipped"
    assert "no key" in rows[-1].error
    with pytest.raises(ConfigError, match="need data"):
        spec.build(config("attack=intercept", "attack.data=none").attack, "attack")
    with pytest.raises(ConfigError, match=r"must list key"):
        spec.build(config("attack=intercept", "attack.knows=[weights,method]").attack, "attack")


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
    assert run.judge(x, other[2], key)[0] == 0.5


def test_a_students_labels_are_the_victims(marked, monkeypatch):
    from bench.tasks.classification import ClassificationTask

    monkeypatch.setattr(ClassificationTask, "loss", lambda *a: pytest.fail("labels were read"))
    x, model, _ = marked("uchida", "distill", "attack.snapshots=[1]", "attack.student=null")
    assert [knob for knob, *_ in snapshots(x, model, None)] == ["epoch/same"]


@pytest.mark.slow
@pytest.mark.quick
def test_forging_follows_each_methods_weak_point(results):
    def claims(method, *more):
        rows = run.run(tiny(results, method, "forge", *more)).rows
        return {r.knob: r.claim_detected for r in rows if r.claim_detected is not None and r.knob != "tries"}

    assert claims("frequency") == {"flip": True, "splice": True}
    assert claims("frequency", "method.binding=hash") == {"flip": False, "splice": False}
    assert claims("watermas") == {"flip": False, "splice": True}
    assert claims("watermas", "method.binding=hash") == {"flip": False, "splice": False}
    assert claims("uchida")["splice"]
    assert not claims("neuralmark")["splice"]


def test_writing_over_a_module_needs_no_training(results):
    rows = {r.knob: r for r in run.run(tiny(results, "frequency", "overwrite")).rows}
    row = rows["no training"]
    assert (row.claim_ber, row.claim_detected, row.detected) == (0, True, False)
    assert abs(row.utility - row.utility_victim) < 0.6


def test_the_strength_of_an_overwriting_module_is_the_attackers(marked):
    x, model, _ = marked("frequency", "overwrite", "attack.epochs=1", "attack.lrs=[0.001]", "attack.factors=[1,10]")
    made = {strength: other for knob, strength, other in snapshots(x, model, None) if knob != "no training"}
    spread = {factor: float(x.method.components(other).detach().std()) for factor, other in made.items()}
    assert spread[10] / spread[1] == pytest.approx(10, rel=0.15)
