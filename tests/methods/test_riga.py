"""RIGA: what the extractor, the discriminator and the null promise."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from attacks._layers import Layer
from attacks._rewrite import rewrite
from bench import metrics, spec, stages
from bench.errors import ConfigError
from methods.riga import TRAINED, Game, answers, filters, noise, tail
from tests.helpers import config, net, rng

RIGA = replace(spec.build(config("method=riga").method, "method"), n_bits=32, hidden=20, unmarked=16)


def trained(method=RIGA, steps=TRAINED, seed=0):
    """A key whose extractor was trained on an untrained network as it is."""
    model = net()
    key = method.keygen(model, rng(seed), None)
    game = Game.of(method, model["stage2"].weight, key, seed, unmarked=False)
    for _ in range(steps):
        game.step(filters(model["stage2"].weight))
    game.kept(key)
    return model, key, game


def test_the_filter_is_the_mean_in_units_of_independent_channels():
    weight = torch.randn(4000, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.01
    x = filters(weight)
    by_hand = weight.mean(0).flatten() * 4000**0.5 / weight.std()
    torch.testing.assert_close(x, by_hand)
    assert float(x.std()) == pytest.approx(Layer(weight).ratio, rel=1e-5)
    torch.testing.assert_close(filters(weight * 7), x)
    assert float(x.std()) == pytest.approx(1, abs=0.2)
    signs = torch.tensor([[1.0] * 4000, [-1.0] * 4000])
    torch.testing.assert_close(filters(weight, signs), torch.stack([x, -x]))
    last = weight.to(memory_format=torch.channels_last)
    torch.testing.assert_close(filters(last), x)


def test_logits_are_the_extractors_of_the_mean_filter():
    model, key = net(), RIGA.keygen(net(), rng(), None)
    inner, outer = (key.secret[f"extractor.{part}"].numpy() for part in ("inner", "outer"))
    hidden = inner @ filters(model["stage2"].weight).detach().numpy()
    by_hand = outer @ np.where(hidden > 0, hidden, 0.2 * hidden)
    assert key.where == ("stage2.weight",)
    np.testing.assert_allclose(RIGA.logits(model, key).detach().numpy(), by_hand, rtol=1e-4, atol=1e-6)


def test_no_bit_depends_on_what_is_unread_or_on_the_unit():
    model, key, _ = trained()
    read = RIGA.extract(model, key, None) > 0.5
    hidden = RIGA.unread(model, key)["stage2.weight"]
    with torch.no_grad():
        mean = model["stage2"].weight.mean(0)
        model["stage2"].weight.copy_(mean + 5 * hidden.flip(0))
        assert torch.equal(RIGA.extract(model, key, None) > 0.5, read)
        model["stage2"].weight.copy_(hidden)
        assert RIGA.evidence(RIGA.extract(model, key, None), key)[1] > -3
        model["stage2"].weight.zero_()
    assert (RIGA.extract(model, key, None) == 0.5).all()


def test_trained_it_reads_the_message_from_this_network_and_from_no_other():
    model, key, game = trained()
    assert metrics.ber(RIGA.extract(model, key, None), key.message) == 0
    errors = []
    for seed in range(200):
        torch.manual_seed(seed)
        other = torch.nn.Conv2d(16, 24, 3).weight
        errors.append(float(((RIGA.reader(key, other.device)(other) > 0) != key.message).float().mean()))
    # 32 bits: standard deviation of a share 0.088 if independent, 0.12 at correlation 1 / 17 x 2.
    assert np.mean(errors) == pytest.approx(0.5, abs=0.05)
    assert np.std(errors) < 0.15
    # Each unmarked filter reads a message of its own.
    read = answers(game.extractor, game.clean) > 0
    assert torch.equal(read, game.messages[1:] > 0.5)
    assert 0.3 < (game.messages[1:] != game.messages[0]).float().mean() < 0.7


def test_the_discriminator_is_clipped_and_sees_no_order():
    _, _, game = trained(steps=20)
    assert max(float(w.detach().abs().max()) for w in game.judge) == np.float32(RIGA.clip)
    x = torch.randn(144)
    mixed = x[torch.randperm(144)]
    free = copy.deepcopy(game)
    free.method = replace(RIGA, lambda_=0)
    torch.testing.assert_close(free.penalty(x), free.penalty(mixed))
    assert not torch.isclose(game.penalty(x), game.penalty(mixed))  # the extractor does
    torch.testing.assert_close(game.ordered, game.clean.sort(1).values)


def test_the_discriminator_tells_a_filter_that_was_enlarged_and_pulls_it_back():
    model, key = net(), RIGA.keygen(net(), rng(), None)
    game = Game.of(replace(RIGA, lambda_=0, lambda_2=1), model["stage2"].weight, key, 0)
    x = 3 * filters(model["stage2"].weight).detach()
    for _ in range(100):
        game.step(x)
    shown, clean = answers(game.judge, x.sort().values), answers(game.judge, game.ordered)
    assert (clean > shown).all()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(game.penalty(leaf), leaf)
    assert (x - 0.1 * slope / slope.norm()).std() < x.std()


@pytest.mark.parametrize(("lambda_", "lambda_2"), [(1, 0), (0, 1)])
def test_both_terms_reach_the_weight_and_neither_network_that_plays(lambda_, lambda_2):
    model, key = net(), RIGA.keygen(net(), rng(), None)
    game = Game.of(replace(RIGA, lambda_=lambda_, lambda_2=lambda_2), model["stage2"].weight, key, 0)
    game.penalty(filters(model["stage2"].weight)).backward()
    assert model["stage2"].weight.grad.abs().sum() > 0
    assert all(x.grad is None for x in (*game.extractor, *game.judge))
    before = model["stage2"].weight.detach().clone()
    game.step(filters(model["stage2"].weight))
    assert torch.equal(model["stage2"].weight, before)


def test_a_game_goes_on_from_its_state_to_the_same_bits():
    model, _, game = trained(steps=7)
    other = Game.of(RIGA, model["stage2"].weight, RIGA.keygen(model, rng(5), None), 0, unmarked=False)
    other.messages = game.messages
    other.load_state_dict({k: v.clone() for k, v in game.state_dict().items()})
    for one in (game, other):
        for _ in range(3):
            one.step(filters(model["stage2"].weight))
    for a, b in zip((*game.extractor, *game.judge), (*other.extractor, *other.judge), strict=True):
        assert torch.equal(a, b)


def test_same_seeds_same_bits():
    (_, one, _), (_, two, _), (_, other, _) = trained(steps=5), trained(steps=5), trained(steps=5, seed=1)
    assert torch.equal(one.message, two.message)
    for name in ("extractor.inner", "extractor.outer"):
        assert torch.equal(one.secret[name], two.secret[name])
        assert not torch.equal(one.secret[name], other.secret[name])


def test_the_tail_is_the_beta_binomials_and_the_binomials_without_correlation():
    for k, n, mean, c in ((40, 64, 0.5, 0.02), (200, 256, 0.6, 0.1), (0, 8, 0.5, 0.3)):
        a, b = mean * (1 / c - 1), (1 - mean) * (1 / c - 1)
        by_hand = betabinom.pmf(np.arange(k, n + 1), n, a, b).sum()
        assert tail(k, n, mean, c) == pytest.approx(float(np.log10(by_hand)), abs=1e-6)
    # All of n: an urn from which each ball comes back with another of its colour.
    a, at = 0.5 * (1 / 0.0154 - 1), np.arange(64)
    assert tail(64, 64, 0.5, 0.0154) == pytest.approx(np.log10((a + at) / (2 * a + at)).sum(), abs=1e-6)
    assert tail(60, 64, 0.5, 1e-7) == pytest.approx(metrics.log10_p(4 / 64, 64), abs=1e-3)


def test_evidence_is_less_than_independent_bits_would_give():
    _, key, _ = trained()
    error, log10_p = RIGA.evidence(key.message.float(), key)
    assert error == 0
    # One message among 17 has a seventeenth of what all have in common, at least.
    assert metrics.log10_p(0.0, 32) < tail(32, 32, 0.5, 1 / 17) - 1e-9 <= log10_p < -3
    assert RIGA.evidence(torch.full((32,), 0.5), key)[1] > -0.5
    assert noise(144).shape == (64, 144)
    assert torch.equal(noise(144), noise.__wrapped__(144))


def test_an_extractor_that_reads_its_message_everywhere_proves_nothing():
    _, key, _ = trained()
    # Whatever comes in, one unit is active or a fifth of it: bits have one sign if rows of opposite units agree.
    inner = torch.randn(1, 144, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    inner[1] *= -1
    outer = torch.where(key.message, 1.0, -1.0)[:, None].repeat(1, 2)
    constant = replace(key, secret={"extractor.inner": inner, "extractor.outer": outer})
    soft = RIGA.extract(net(), constant, None)
    assert metrics.ber(soft, key.message) == 0
    assert RIGA.evidence(soft, constant) == (0.0, 0.0)
    # One that reads all or nothing by a coin's toss: two outcomes, whatever n.
    coin = replace(key, secret={"extractor.inner": inner[:1], "extractor.outer": outer[:, :1]})
    assert RIGA.evidence(key.message.float(), coin)[1] > -0.5


def test_capacity_and_options_are_said():
    with pytest.raises(ConfigError, match=r"needs 200 averaged weights .* carries 144"):
        replace(RIGA, n_bits=200).keygen(net(), rng(), None)
    for wrong in ({"rate": 0.0}, {"clip": -1.0}, {"lambda_2": -1.0}, {"unmarked": 0}, {"hidden": 0}):
        with pytest.raises(ConfigError):
            replace(RIGA, **wrong)


def test_anybody_trains_an_extractor_of_his_own():
    model = net()
    before = copy.deepcopy(model.state_dict())
    ((knob, steps, key),) = RIGA.forgeries(model, rng(3), None, None, [])
    assert (knob, steps) == ("trained", TRAINED)
    assert metrics.ber(RIGA.extract(model, key, None), key.message) == 0
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in before.items())


def test_rewriting_reads_another_message_where_hidden_units_suffice():
    method = replace(RIGA, n_bits=12, hidden=60)
    model, key, _ = trained(method)
    new = np.random.default_rng(7).integers(0, 2, 12).astype(bool)
    rewrite(model, method, key, new)
    assert metrics.ber(method.extract(model, key, None), torch.from_numpy(new)) == 0


def test_the_mark_is_read_from_the_network_and_not_from_its_relatives(marked):
    x, model, key = marked("riga")
    assert metrics.ber(x.method.extract(model, key, x.task), key.message) == 0
    relatives = [stages.load_weights(stages.skeleton(x), at(x).path) for at in (stages.host, stages.baseline)]
    for other in (*relatives, stages.skeleton(x), stages.skeleton(x, "stranger")):
        assert x.method.evidence(x.method.extract(other, key, x.task), key)[1] > -3
    untrained = x.method.keygen(stages.skeleton(x), x.rng("owner", "key"), x.task)
    assert torch.equal(untrained.message, key.message)
    assert not torch.equal(untrained.secret["extractor.inner"], key.secret["extractor.inner"])
    # The discriminator keeps the filter's size near that of unmarked networks; Uchida's is about 6.
    assert Layer(model.get_parameter(key.where[0]).detach()).ratio < 3
