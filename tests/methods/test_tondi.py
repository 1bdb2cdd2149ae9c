"""Tondi et al.: spread bits in weights that are set before training and stay what they are."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from attacks import forge
from bench import metrics, run, spec, stages
from bench.errors import ConfigError
from bench.models import weights
from bench.store.keys import load_key
from bench.types import Key
from methods import _positions as places
from tests.helpers import config, net, rng, tiny


def method(*words: str):
    return spec.build(config("method=tondi", *words).method, "method")


def made(*words: str, seed: int = 0):
    """A method, a small network whose marked weights are set, its key and what is held."""
    made, model = method("method.n_bits=16", "method.spread=40", *words), net()
    key = made.keygen(model, rng(seed), None)
    held = made.held(model, key, model)
    held.restore(model)
    return made, model, key, held


def value(model, key) -> torch.Tensor:
    """Marked weights [n, spread]."""
    return places.flat(model, key.where).detach()[key.secret["positions"]]


def repeats(weight: torch.Tensor) -> int:
    return int(weight.detach().abs().reshape(-1).unique(return_counts=True)[1].max())


def still(x, model, key) -> None:
    start = stages.fresh(x)
    before = places.flat(start, key.where).detach()
    like = stages.load_weights(stages.fresh(x), stages.host(x).path)  # what embedding trains first, to the same bits
    held = x.method.held(start, key, like)
    held.restore(start)
    assert torch.equal(value(model, key), value(start, key))
    for name, (where, kept, _) in held.layers.items():
        assert torch.equal(model.get_parameter(name).detach().reshape(-1)[where], kept)
    others = torch.ones(len(before), dtype=torch.bool)
    others[key.secret["positions"].reshape(-1)] = False
    assert (places.flat(model, key.where).detach()[others] != before[others]).float().mean() > 0.99


def test_marked_weights_keep_their_exact_values_through_training(marked):
    still(*marked("tondi"))  # AdamW, weight decay, hundreds of steps


def test_sgd_with_momentum_and_decay_cannot_move_them_either(results):
    words = ("train.optimizer=sgd", "train.lr=0.05", "train.weight_decay=0.01", "train.epochs=1")
    x = run.prepare(tiny(results, "tondi", "none", *words))
    entry = stages.mark(x)
    still(x, stages.load_weights(stages.skeleton(x), entry.path), load_key(entry.path / "key.safetensors"))


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_marked_weights_are_laplacian_as_wide_as_their_layer_and_signed_by_bit_and_code(strength):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(300, 200), torch.nn.Linear(200, 400))
    tondi = method("method.n_bits=64", "method.spread=300", f"method.strength={strength}")
    model.anatomy = net().anatomy
    key = tondi.keygen(model, rng(), None)
    spreads = [float(model.get_parameter(name).detach().std()) for name in key.where]
    held = tondi.held(model, key, model)
    for name, spread in zip(key.where, spreads, strict=True):
        found = held.layers[name][1]
        assert len(found) > 3000
        assert float(found.std()) == pytest.approx(strength * spread, rel=0.06)
        apart = stats.kstest(found.numpy(), stats.laplace(scale=strength * spread / np.sqrt(2)).cdf).statistic
        assert apart < 1.95 / len(found) ** 0.5  # 0.1%
    held.restore(model)
    sign = torch.where(key.message, 1, -1)[:, None] * key.secret["code"]
    assert torch.equal(value(model, key).sign(), sign.float())
    wide = copy.deepcopy(model)
    for name in key.where:
        wide.get_parameter(name).data.mul_(4)
    again = tondi.held(model, key, wide).layers  # the same draws, of another network's width
    for name in key.where:
        now = float(wide.get_parameter(name).detach().std())
        assert float(again[name][1].std()) == pytest.approx(strength * now, rel=0.06)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_no_magnitude_gives_a_marked_weight_away(marked, strength):
    x, _, key = marked("tondi")
    start = stages.fresh(x)
    plain = {name: repeats(w) for name, w in weights.weights(start).items()}
    held = replace(x.method, strength=strength).held(start, key, start)
    held.restore(start)
    assert all(repeats(w) <= plain[name] for name, w in weights.weights(start).items())
    for name, (where, values, _) in held.layers.items():  # not even once beside another
        others = torch.ones(start.get_parameter(name).numel(), dtype=torch.bool)
        others[where] = False
        assert not torch.isin(values.abs(), start.get_parameter(name).detach().reshape(-1)[others].abs()).any()
        assert len(values.abs().unique()) == len(values)


def test_floats_that_are_taken_are_drawn_again_and_few_repeat_in_the_end():
    draw = rng()
    known = np.arange(100, dtype=np.float32)
    found = places.unlike(lambda n: draw.integers(0, 400, n), 100, known)
    assert found.min() >= 100
    assert len(set(found)) == 100
    assert places.unlike(lambda n: draw.integers(0, 400, n), 50, known, least=300.0).min() >= 300
    assert len(places.unlike(lambda n: draw.integers(0, 101, n), 5, known)) == 5


def test_a_bit_is_the_correlation_of_its_own_weights_and_nothing_else():
    tondi, model, key, _ = made()
    y = tondi.logits(model, key)
    flat = places.flat(model, key.where).detach().numpy()
    positions, code = key.secret["positions"].numpy(), key.secret["code"].numpy()
    assert np.allclose(y.detach().numpy(), (flat[positions] * code).sum(1), atol=1e-6)
    assert len(np.unique(positions)) == positions.size
    slopes = torch.autograd.grad(y[3], [model.get_parameter(name) for name in key.where])
    slope = torch.cat([s.reshape(-1) for s in slopes])
    assert set(slope.nonzero()[:, 0].tolist()) == set(positions[3].tolist())
    assert metrics.ber(tondi.extract(model, key, None), key.message) == 0
    for name, hidden in tondi.unread(model, key).items():
        model.get_parameter(name).data.copy_(hidden)
    assert not tondi.logits(model, key).any()


def test_anyone_reads_the_bits_with_numpy(marked):
    _, model, key = marked("tondi")
    state = {name: w.numpy() for name, w in model.state_dict().items()}
    flat = np.concatenate([state[name].reshape(-1) for name in key.where])
    bits = (flat[key.secret["positions"].numpy()] * key.secret["code"].numpy()).sum(1) > 0
    assert (bits == key.message.numpy()).all()


def test_strangers_read_what_the_null_says_from_host_and_victim(marked):
    """Fair coins; the correlation is normal, spread x the mean square of the weights being its variance."""
    x, model, _ = marked("tondi")
    host = stages.load_weights(stages.fresh(x), stages.host(x).path)
    for net_, seed in ((host, 0), (model, 1)):
        draw, errors, logits = rng(seed), [], []
        for _ in range(150):
            key = x.method.keygen(net_, draw, None)
            logits.append(x.method.logits(net_, key).detach())
            errors.append(metrics.ber(logits[-1].sigmoid(), key.message))
        flat = places.flat(net_, key.where).detach()
        y = torch.cat(logits) / (x.method.spread * flat.square().mean()).sqrt()
        assert stats.kstest(y.numpy(), stats.norm.cdf).statistic < 1.95 / len(y) ** 0.5
        n = key.n_bits
        counts = np.rint(n * np.array(errors))
        assert counts.mean() == pytest.approx(n / 2, abs=5 * (n / 4 / 150) ** 0.5)
        chi2 = ((counts - n / 2) ** 2).sum() / (n / 4)
        assert 1e-4 < stats.chi2.cdf(chi2, 150) < 1 - 1e-4


def test_noise_loses_as_many_bits_as_its_size_says():
    tondi, model, key, _ = made("method.n_bits=64", "method.spread=10", seed=2)
    margins = (tondi.logits(model, key) * tondi.coded(key)).detach().numpy()
    sigma, lost, expected = 0.1, 0, stats.norm.sf(margins / (0.1 * 10**0.5))
    noise = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = copy.deepcopy(model)
        for name in key.where:
            w = other.get_parameter(name).data
            w.add_(sigma * torch.randn(w.shape, generator=noise))
        lost += 64 * metrics.ber(tondi.extract(other, key, None), key.message)
    spread = (50 * (expected * (1 - expected)).sum()) ** 0.5
    assert 50 < 50 * expected.sum() < 1600
    assert lost == pytest.approx(50 * expected.sum(), abs=5 * spread)


def test_a_magnitude_that_vanishes_is_half_an_error():
    tondi, model, key, _ = made()
    for name in key.where:
        model.get_parameter(name).data.zero_()
    assert metrics.ber(tondi.extract(model, key, None), key.message) == 0.5


def test_without_commitment_a_code_of_ones_choice_reads_anything_and_with_one_nothing():
    for binding, wrong in (("none", 0), ("hash", 0)):
        tondi, model, _, _ = made(f"method.binding={binding}")
        key = tondi.keygen(model, rng(5), None)
        claim = forge.flipped(model, tondi, key)
        assert metrics.ber(tondi.extract(model, claim, None), claim.message) == wrong
        assert tondi.accepts(claim) == (binding == "none")
        assert tondi.accepts(key)


def test_commitment_pins_positions_code_message_and_layers():
    tondi, _, key, _ = made("method.binding=hash")
    assert tondi.accepts(key)
    assert tondi.accepts(tondi.keygen(net(), rng(0), None))
    for change in (
        {"positions": key.secret["positions"].flip(0)},
        {"code": -key.secret["code"]},
        {"seed": key.secret["seed"].flip(0)},
        {"sizes": key.secret["sizes"] + 1},
        {"sizes": key.secret["sizes"] // 100},
    ):
        assert not tondi.accepts(Key(key.message, {**key.secret, **change}, key.where))
    assert not tondi.accepts(Key(~key.message, key.secret, key.where))
    assert not tondi.accepts(Key(key.message, key.secret, ("stage1.weight",)))
    without = {name: x for name, x in key.secret.items() if name not in ("seed", "sizes")}
    assert not tondi.accepts(Key(key.message, without, key.where))
    assert not replace(tondi, spread=20).accepts(key)


def test_what_cannot_be_is_said():
    for word, said in (("strength=0", "above 0"), ("spread=0", "spread"), ("situation=distill", "scratch")):
        with pytest.raises(ConfigError, match=said):
            method(f"method.{word}")
    with pytest.raises(ConfigError, match=r"12,800 of 3,456 weights, and may be half"):
        method().keygen(net(), rng(), None)
    with pytest.raises(ConfigError, match="matches no convolution"):
        method("method.layer=stag1").keygen(net(), rng(), None)
