"""TATTOOED: orthogonal codes, a preamble that gives the gain, and a code that corrects what it should."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from torch import nn

from attacks._rewrite import rewrite
from bench import metrics, spec, stages
from bench.errors import ConfigError
from bench.models.anatomy import Anatomy
from bench.types import Key
from methods import _ldpc as ldpc
from methods import _positions as places
from methods.tattooed import PREAMBLE, walsh
from tests.helpers import config, rng

EVERY = (8, 64, 256, 300)


def method(*words: str):
    small = ("method.n_bits=64", "method.share=0.25")
    return spec.build(config("method=tattooed", *small, *words).method, "method")


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.ModuleDict({"stem": nn.Conv2d(3, 32, 3), "a": nn.Conv2d(32, 64, 3), "b": nn.Linear(200, 300)})
    made["norm"], made["head"] = nn.BatchNorm2d(64), nn.Linear(300, 10)
    made.anatomy = Anatomy(heads=frozenset({"head"}))
    return made.eval()


def embedded(*words: str, seed: int = 0):
    tattooed, model = method(*words), net(seed)
    key = tattooed.keygen(model, rng(seed), None)
    return tattooed, tattooed.embed(copy.deepcopy(model), key, None, None), key, model


def read(tattooed, model, key) -> float:
    return metrics.ber(tattooed.extract(model, key, None), key.message)


# Low-density parity-check codes


@pytest.mark.parametrize("degrees", [(3, 12), (3, 4), (3, 6), (2, 5)])
@pytest.mark.parametrize("n", EVERY)
def test_codes_are_regular_as_short_as_may_be_and_hold_the_message(n, degrees):
    d_v, d_c = degrees
    code = ldpc.regular(n, d_v, d_c)
    assert (np.bincount(code.checks.ravel(), minlength=code.length) == d_v).all()
    assert all(len(set(check)) == d_c for check in code.checks.tolist())
    assert len(code.checks) * d_c == code.length * d_v
    assert code.size >= n
    # The rate is 1 - d_v / d_c, a little more for the d_v - 1 checks that follow; one block less would not do.
    assert code.size >= code.length * (1 - d_v / d_c) + d_v - 1
    assert (code.length - d_c) * (1 - d_v / d_c) + d_v - 1 < n
    message = rng(n).integers(0, 2, n).astype(bool)
    word = code.encode(message)
    assert not (word[code.checks].sum(1) % 2).any()
    assert (word[code.places(n)] == message).all()


def test_what_the_released_code_calls_a_quarter_is_three_quarters():
    """make_ldpc(384, 3, 12): 290 of 384 bits are free, not 96."""
    code = ldpc.regular(290, 3, 12)
    assert (code.length, len(code.checks), code.size) == (384, 96, 290)
    assert ldpc.regular(96, 3, 4).length == 376


def test_codes_are_the_same_everywhere():
    checks = ldpc.regular(64, 3, 12).checks
    assert checks.shape == (21, 12)
    assert checks[7].tolist() == [24, 81, 5, 33, 23, 14, 62, 45, 64, 43, 77, 57]


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_decoding_commutes_with_words(number):
    """Hence the null: a stranger's signs are fair coins, so that every message is as likely."""
    code, draw = ldpc.regular(64, 3, 12), rng(number)
    ratios = draw.normal(0, 2, code.length)
    word = code.encode(draw.integers(0, 2, 64).astype(bool))
    turned = np.where(word, -1.0, 1.0)
    assert np.allclose(code.decode(ratios * turned), code.decode(ratios) * turned, atol=1e-8)


@pytest.mark.parametrize(("d_c", "sigma"), [(12, 0.45), (4, 0.9)])
def test_soft_decoding_beats_no_code_and_repetition_at_the_same_energy(d_c, sigma):
    code, draw, n = ldpc.regular(256, 3, d_c), rng(), 256
    wrong, raw, trials = 0, 0, 40
    for _ in range(trials):
        message = draw.integers(0, 2, n).astype(bool)
        y = np.where(code.encode(message), 1.0, -1.0) + sigma * draw.standard_normal(code.length)
        wrong += ((code.decode(2 * y / sigma**2)[code.places(n)] > 0) != message).sum()
        raw += ((y[code.places(n)] > 0) != message).sum()
    bits = n * trials
    # A bit alone with all the energy of its share of the word, which repetition does not better.
    alone = stats.norm.sf((code.length / n) ** 0.5 / sigma)
    assert raw / bits == pytest.approx(stats.norm.sf(1 / sigma), rel=0.2)
    assert raw > 100
    assert wrong / bits < alone / 5


def test_a_channel_that_says_nothing_is_undecided():
    code = ldpc.regular(64, 3, 12)
    assert not code.decode(np.zeros(code.length)).any()
    assert np.isfinite(code.decode(np.full(code.length, 1e300))).all()


# Spreading


def test_reading_is_the_correlation_with_codes_of_one_and_minus_one():
    tattooed, model, key, _ = embedded()
    length, flat = len(key.secret["positions"]), places.flat(model, key.where).detach().numpy()
    rows = np.tile(linalg.hadamard(tattooed.chips)[: tattooed.symbols], length // tattooed.chips)
    codes = rows * key.secret["code"].numpy() * key.secret["symbols"].numpy()[:, None]
    assert set(np.unique(codes)) == {-1, 1}
    assert np.array_equal(codes @ codes.T, length * np.eye(len(codes)))  # orthogonal, exactly
    y = codes @ flat[key.secret["positions"].numpy()].astype(np.float64) / length
    assert np.allclose(tattooed.channel(model, key).detach().numpy(), y, atol=1e-7)
    assert len(key.secret["positions"].unique()) == length <= 0.25 * len(flat)


def test_embedding_adds_gamma_to_every_symbol_and_touches_nothing_else():
    tattooed, model, key, before = embedded("method.gamma=0.03")
    added = (tattooed.channel(model, key) - tattooed.channel(before, key)).detach()
    spread = float(places.flat(before, key.where).detach().std())
    assert torch.allclose(added, 0.03 * spread * tattooed.coded(key), atol=1e-4 * spread)
    old, new = before.state_dict(), model.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"a.weight", "b.weight"}
    moved = places.flat(model, key.where) != places.flat(before, key.where)
    assert int(moved.sum()) <= len(key.secret["positions"])
    assert float(moved.sum()) == pytest.approx(len(key.secret["positions"]), rel=0.03)
    change = (places.flat(model, key.where) - places.flat(before, key.where)).detach()[key.secret["positions"]]
    assert float(change.std()) == pytest.approx(0.03 * spread * tattooed.symbols**0.5, rel=0.1)


def test_the_preamble_gives_gain_and_noise():
    tattooed, model, key, before = embedded("method.gamma=0.05")
    y = (tattooed.channel(model, key) * tattooed.coded(key)).detach()[:PREAMBLE]
    flat = places.flat(before, key.where).detach()
    noise = float(flat.square().mean().sqrt()) / len(key.secret["positions"]) ** 0.5
    assert float(y.mean()) == pytest.approx(0.05 * float(flat.std()), abs=5 * noise / PREAMBLE**0.5)
    assert float(y.std()) == pytest.approx(noise, rel=0.25)
    assert read(tattooed, model, key) == 0


def test_a_sign_of_all_weights_is_taken_out_and_one_of_the_preamble_inverts():
    tattooed, model, key, _ = embedded()
    for name in key.where:
        model.get_parameter(name).data.neg_()
    assert read(tattooed, model, key) == 0
    y = tattooed.channel(model, key).detach()
    y[:PREAMBLE] *= -1
    assert metrics.ber(tattooed.decoded(y), key.message) == 1
    assert metrics.is_detected(tattooed.evidence(tattooed.decoded(y), key)[1], 1e-9)


def test_noise_that_costs_channel_bits_is_corrected():
    tattooed, model, key, _ = embedded("method.d_c=4")
    noise, flat = torch.Generator().manual_seed(1), places.flat(model, key.where).detach()
    gain = float(tattooed.channel(model, key).detach()[:PREAMBLE].mean())
    sigma = 0.8 * gain * len(key.secret["positions"]) ** 0.5
    raw = wrong = 0.0
    for _ in range(5):
        other = copy.deepcopy(model)
        every = torch.arange(len(flat))
        places.write(other, key.where, every, flat + sigma * torch.randn(flat.shape, generator=noise))
        raw += metrics.ber(tattooed.logits(other, key).sigmoid(), key.message)
        wrong += read(tattooed, other, key)
    assert raw / 5 > 0.07
    assert wrong / 5 < raw / 5 / 5


def test_marks_of_others_add_and_take_nothing():
    tattooed, model, key, _ = embedded()
    others = [tattooed.keygen(model, rng(i), None) for i in (1, 2)]
    for other in others:
        tattooed.embed(model, other, None, None)
    assert [read(tattooed, model, k) for k in (key, *others)] == [0, 0, 0]


def test_nothing_to_read_is_half_an_error():
    tattooed, model, key, _ = embedded()
    for value in (0.0, float("nan")):
        for name in key.where:
            model.get_parameter(name).data.fill_(value)
        assert read(tattooed, model, key) == 0.5


def test_strangers_read_what_the_null_says_from_host_and_victim(marked):
    """Decoded bits are fair coins; a symbol is normal, its variance the weights' mean square over the positions."""
    x, model, _ = marked("tattooed")
    host = stages.load_weights(stages.fresh(x), stages.host(x).path)
    for suspect, seed in ((host, 0), (model, 1)):
        draw, counts, y = rng(seed), [], []
        for _ in range(150):
            key = x.method.keygen(suspect, draw, None)
            y.append(x.method.channel(suspect, key).detach())
            counts.append(round(key.n_bits * metrics.ber(x.method.decoded(y[-1]), key.message)))
        flat, n = places.flat(suspect, key.where).detach(), key.n_bits
        unit = (flat.square().mean() / len(key.secret["positions"])).sqrt()
        values = (torch.cat(y) / unit).numpy()
        assert stats.kstest(values, stats.norm.cdf).statistic < 1.95 / len(values) ** 0.5
        assert np.mean(counts) == pytest.approx(n / 2, abs=5 * (n / 4 / 150) ** 0.5)
        chi2 = ((np.array(counts) - n / 2) ** 2).sum() / (n / 4)
        assert 1e-4 < stats.chi2.cdf(chi2, 150) < 1 - 1e-4


def test_anyone_reads_the_symbols_with_numpy(marked):
    x, model, key = marked("tattooed")
    state = {name: w.numpy().astype(np.float64) for name, w in model.state_dict().items()}
    flat = np.concatenate([state[name].reshape(-1) for name in key.where])
    code, chips = key.secret["code"].numpy(), x.method.chips
    folded = (flat[key.secret["positions"].numpy()] * code).reshape(-1, chips).sum(0)
    y = (linalg.hadamard(chips) @ folded)[: x.method.symbols] * key.secret["symbols"].numpy()
    bits = x.method.ldpc.decode(2 * y[PREAMBLE:] * y[:PREAMBLE].mean() / y[:PREAMBLE].var()) > 0
    assert (bits[x.method.ldpc.places(key.n_bits)] == key.message.numpy()).all()


# What those who know more do


def test_whoever_has_the_key_writes_another_message_that_is_decoded():
    """All coded bits are rewritten: the message's own alone would leave a word that is nobody's."""
    tattooed, model, key, _ = embedded()
    new = rng(9).integers(0, 2, key.n_bits).astype(bool)
    rewrite(model, tattooed, key, new)
    assert metrics.ber(tattooed.extract(model, key, None), torch.from_numpy(new)) == 0
    assert 0.25 < read(tattooed, model, key) < 0.75


def test_without_commitment_signs_of_ones_choice_read_anything_and_with_one_nothing():
    for binding in ("none", "hash"):
        tattooed, model, _, _ = embedded(f"method.binding={binding}")
        ((knob, strength, claim),) = tattooed.forgeries(model, rng(3), None, None, [])
        assert (knob, strength) == ("symbols", tattooed.symbols)
        assert read(tattooed, model, claim) == 0
        assert tattooed.accepts(claim) == (binding == "none")


def test_commitment_pins_positions_signs_message_and_layers():
    tattooed, _, key, _ = embedded("method.binding=hash")
    assert tattooed.accepts(key)
    for name in ("positions", "seed", "sizes", "code", "symbols"):
        assert not tattooed.accepts(Key(key.message, {**key.secret, name: key.secret[name].flip(0)}, key.where)), name
    assert not tattooed.accepts(Key(key.message, {**key.secret, "sizes": key.secret["sizes"] // 1000}, key.where))
    assert not tattooed.accepts(Key(~key.message, key.secret, key.where))
    assert not tattooed.accepts(Key(key.message, key.secret, key.where[::-1]))
    without = {name: x for name, x in key.secret.items() if name != "seed"}
    assert not tattooed.accepts(Key(key.message, without, key.where))
    assert not replace(tattooed, share=0.2).accepts(key)


def test_what_is_not_read_is_the_rest():
    tattooed, model, key, _ = embedded()
    hidden, before = tattooed.unread(model, key), tattooed.channel(model, key)
    zero = copy.deepcopy(model)
    for name, w in hidden.items():
        zero.get_parameter(name).data.copy_(w)
    assert not tattooed.channel(zero, key).any()
    for name, w in hidden.items():
        model.get_parameter(name).data.add_(w)
    assert torch.equal(tattooed.channel(model, key), before)


@given(st.integers(0, 6), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_transform_is_that_of_the_matrix(m, number):
    x = torch.from_numpy(rng(number).normal(size=1 << m))
    assert torch.allclose(walsh(x), torch.from_numpy(linalg.hadamard(1 << m)).double() @ x)
    assert torch.allclose(walsh(walsh(x)), x * (1 << m))


def test_what_cannot_be_is_said():
    for words, said in (
        (["method.gamma=0"], "method.gamma=0.0: must be above 0"),
        (["method.share=0.6"], r"must be in \(0, 0\.5\]"),
        (["method.d_c=3"], r"d_c=3 must exceed method\.d_v=3"),
    ):
        with pytest.raises(ConfigError, match=said):
            method(*words)
    with pytest.raises(ConfigError, match=r"284 symbols and so 512 weights, but method\.share=0\.001 of 78,432 are 78"):
        method("method.share=0.001").keygen(net(), rng(), None)
    with pytest.raises(ConfigError, match="matches no convolution"):
        method("method.layer=aa").keygen(net(), rng(), None)
