"""Votes of several projections: the median is the majority, which beats one reading and is as easily forged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from attacks import forge
from attacks._rewrite import rewrite
from bench import metrics
from bench.errors import ConfigError
from bench.models.weights import pointed
from methods.vote import Vote, majority
from tests.helpers import UCHIDA, net, rng

VOTE = Vote(n_bits=32, votes=3, lambda_=0.01, situation="scratch", layer=None)


@given(
    st.sampled_from([1, 3, 5, 9]).flatmap(
        lambda t: arrays.arrays(np.float32, (t, 6), elements=st.floats(-1, 1, width=32).filter(lambda x: x))
    )
)
def test_the_median_has_the_sign_of_the_majority(readings):
    votes = (readings > 0).sum(0)
    expected = 2 * votes > len(readings)
    assert np.array_equal(majority(torch.from_numpy(readings)).numpy() > 0, expected)


def test_one_large_reading_does_not_turn_a_vote():
    readings = torch.tensor([[1e9, -1e9], [-1e-6, 1e-6], [-1e-30, 1e-30]])
    assert (majority(readings) > 0).tolist() == [False, True]


def test_logits_are_the_median_of_three_of_uchidas_readings():
    model, key = net(), VOTE.keygen(net(), rng(), None)
    w = model["stage2"].weight.detach().numpy().mean(0).reshape(-1)
    each = np.stack([x @ w for x in key.secret["projection"].numpy()])
    assert key.secret["projection"].shape == (3, 32, 144)
    np.testing.assert_allclose(VOTE.logits(model, key).detach().numpy(), np.median(each, 0), rtol=1e-3, atol=1e-6)
    soft = VOTE.extract(model, key, None)
    assert ((soft > 0.5).numpy() == ((each > 0).sum(0) >= 2)).all()


def test_loss_is_the_sum_of_all_readings_cross_entropies():
    model, key = net(), VOTE.keygen(net(), rng(), None)
    y = VOTE.reader(key, torch.device("cpu"))(model["stage2"].weight)
    p, truth = torch.sigmoid(y).detach().double(), key.message.double()
    by_hand = -sum(float((truth * p[t].log() + (1 - truth) * (1 - p[t]).log()).sum()) for t in range(3))
    assert VOTE.embedding_loss(y, key.message.float()).item() == pytest.approx(by_hand, rel=1e-5)


def embedded(method: Vote, steps: int = 300) -> tuple:
    """A weight whose readings were pulled by the loss alone, and its key."""
    model, key = net(), method.keygen(net(), rng(), None)
    weight = model["stage2"].weight
    read, descent = method.reader(key, weight.device), torch.optim.Adam([weight], 1e-3)
    for _ in range(steps):
        descent.zero_grad()
        method.embedding_loss(read(weight), key.message.float()).backward()
        descent.step()
    return model, key


def test_majority_beats_the_single_reading_on_a_noisy_layer():
    model, key = embedded(VOTE)
    weight, clean = model["stage2"].weight, model["stage2"].weight.detach().clone()
    truth, noise, wrong = key.message, torch.Generator().manual_seed(0), {}
    assert metrics.ber(VOTE.extract(model, key, None), truth) == 0
    for _ in range(200):
        with torch.no_grad():
            weight.copy_(clean + 4 * clean.std() * torch.randn(clean.shape, generator=noise))
            each = (VOTE.reader(key, weight.device)(weight) > 0) != truth
            wrong.setdefault("single", []).append(float(each.float().mean()))
            wrong.setdefault("majority", []).append(metrics.ber(VOTE.extract(model, key, None), truth))
    single, voted = np.mean(wrong["single"]), np.mean(wrong["majority"])
    assert 0.02 < single < 0.4
    # 3 p^2 - 2 p^3 if the readings were alike and independent
    assert voted < 0.75 * single
    assert np.mean(np.subtract(wrong["single"], wrong["majority"]) > 0) > 0.9


def test_gradient_is_the_mean_readings():
    model, key = net(), VOTE.keygen(net(), rng(), None)
    mask = pointed(model, VOTE, key)["stage2.weight"]
    assert mask.all()  # interception finds every weight of the layer
    x = key.secret["projection"].clone().requires_grad_()
    VOTE.logits(model, replace(key, secret={"projection": x})).sum().backward()
    w = model["stage2"].weight.detach().mean(0).reshape(-1)
    torch.testing.assert_close(x.grad, (w / 3).expand_as(x))


def test_a_claim_is_forged_by_flipping_and_by_learning():
    model = net()
    claim = VOTE.keygen(model, rng(1), None)
    assert metrics.ber(VOTE.extract(model, claim, None), claim.message) > 0.2
    for made in (forge.flipped(model, VOTE, claim), [*forge.learned(model, VOTE, claim, [50], 0.1)][-1][1]):
        assert metrics.ber(VOTE.extract(model, made, None), made.message) == 0
        assert VOTE.accepts(made)


@pytest.mark.parametrize("votes", [1, 3, 5, 31])
def test_votes_are_not_taken_for_bits(votes):
    method = replace(VOTE, votes=votes)
    key = method.keygen(net(), rng(1), None)
    assert forge.dimension(key.secret["projection"], key.n_bits) == 1
    made = forge.flipped(net(), method, key)
    assert metrics.ber(method.extract(net(), made, None), made.message) == 0


def test_as_many_votes_as_bits_are_flipped_all_the_same():
    method = replace(VOTE, votes=33, n_bits=33)
    made = forge.flipped(net(), method, method.keygen(net(), rng(1), None))
    assert metrics.ber(method.extract(net(), made, None), made.message) == 0


def test_one_vote_is_uchida():
    method, model = replace(VOTE, votes=1), net()
    key = method.keygen(model, rng(), None)
    same = UCHIDA.keygen(model, rng(), None)
    assert torch.equal(key.message, same.message)
    assert torch.equal(key.secret["projection"][0], same.secret["projection"])
    torch.testing.assert_close(method.logits(model, key), UCHIDA.logits(model, same))


def test_rewriting_turns_the_bits_that_are_asked():
    # Once: by the median's own gradient most bits stay, and an attack that rewrites once would seem resisted.
    model, key = embedded(VOTE)
    other = ~key.message.numpy()
    rewrite(model, VOTE, key, other)
    assert metrics.ber(VOTE.extract(model, key, None), torch.from_numpy(other)) < 0.2


def test_capacity_is_said_and_what_lies_beyond_it_is_not_refused():
    with pytest.raises(ConfigError, match=r"needs 200 .* carries 144"):
        replace(VOTE, n_bits=200).keygen(net(), rng(), None)
    # T n = 3 x 48 = M: every reading is right. T n = 3 x 144 = 3 M, past Cover's 2 M: not every reading can be.
    for n, complete in ((48, True), (144, False)):
        method = replace(VOTE, n_bits=n)
        model, key = embedded(method, 600)
        readings = method.reader(key, torch.device("cpu"))(model["stage2"].weight)
        assert bool(((readings > 0) == key.message).all()) == complete


def test_an_even_number_of_votes_is_refused():
    with pytest.raises(ConfigError, match=r"votes=4.*odd"):
        replace(VOTE, votes=4)
