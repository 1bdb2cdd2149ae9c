"""What Uchida's and NeuralMark's readers share: null, keys, penalty, and reading without this code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bench import metrics, run, stages
from bench.models import weights
from bench.types import Key, Method
from tests.helpers import NEURALMARK, UCHIDA, net, reference_logits, rng, tiny


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_random_keys_match_half_of_a_hosts_bits(method):
    # The binomial null: 0.5 within 5 standard errors over all bits, and the spread of a binomial.
    model, draws = net(), rng(7)
    rates = [
        1 - metrics.ber(method.extract(model, key, None), key.message)
        for key in (method.keygen(model, draws, None) for _ in range(400))
    ]
    assert np.mean(rates) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(400 * 32))
    assert np.std(rates) == pytest.approx(0.5 / np.sqrt(32), rel=0.2)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK, replace(UCHIDA, binding="hash")])
def test_keys_come_from_their_generator_alone(method):
    model = net()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global generator is the point)
    first = method.keygen(model, rng(5), None)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = method.keygen(model, rng(5), None)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert same_key(first, second)
    assert not same_key(first, method.keygen(model, rng(6), None))


def same_key(a: Key, b: Key) -> bool:
    same = a.where == b.where and torch.equal(a.message, b.message) and a.secret.keys() == b.secret.keys()
    return same and all(torch.equal(a.secret[k], b.secret[k]) for k in a.secret)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_the_penalty_follows_the_weight(method):
    # The trap of public code: a tensor averaged once at construction, whose gradient never changes.
    model = net()
    key = method.keygen(model, rng(), None)
    read = method.reader(key, torch.device("cpu"))
    w = model["stage2"].weight
    before = read(w).detach().clone()
    with torch.no_grad():
        w.mul_(-2)
    torch.testing.assert_close(read(w), -2 * before)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_extraction_draws_nothing_and_keeps_no_gradient(method):
    model = net()
    key = method.keygen(model, rng(), None)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    soft = method.extract(model, key, None)
    assert not soft.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(soft, method.extract(model, key, None))
    assert soft.shape == (32,)
    assert ((soft >= 0) & (soft <= 1)).all()


def numpy_bits(method: str, weight: np.ndarray, key: dict[str, np.ndarray], k: int, rounds: int) -> np.ndarray:
    if method == "uchida":
        return key["projection"] @ weight.mean(0).reshape(-1) > 0
    return reference_logits(weight, key["matrix"], key["message"].astype(bool), k, rounds) > 0


@pytest.mark.parametrize("method", ["uchida", "neuralmark"])
def test_the_two_files_and_numpy_suffice_to_read_a_mark(marked, method):
    import json

    from safetensors.numpy import load_file

    x, _, _ = marked(method)
    folder = stages.mark(x).path
    key, model = load_file(folder / "key.safetensors"), load_file(folder / "model.safetensors")
    with safe_open(folder / "key.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["method"] == method
    (name,) = json.loads(metadata["where"])
    bits = numpy_bits(method, model[name], key, x.cfg.method.get("k"), x.cfg.method.get("rounds"))
    assert (bits == key["message"].astype(bool)).all()


def build(folder: Path, name: str, *more: str):
    """A method of conf/ with a few bits, an untrained network, and a key for it."""
    x = run.prepare(tiny(folder, name, "none", "method.n_bits=16", *more))
    model = x.method.extend(x.task.build(x.model, 0), x.task, 0).eval()
    return x.method, model, x.method.keygen(model, rng(), x.task)


READ = [
    ("uchida",),
    ("neuralmark",),
    ("neuralmark", "method.pool=false"),
    ("watermas",),
    ("tondi",),
    ("tattooed", "method.gamma=0.05"),
    ("frequency", "method.match=false"),
    ("frequency", "method.module=false"),
]


@pytest.mark.parametrize("words", READ, ids=lambda words: "-".join(words))
@torch.no_grad()
def test_bits_are_in_what_is_read_and_in_nothing_else(results, words):
    method, model, key = build(results, *words)
    before, hidden = method.logits(model, key), method.unread(model, key)
    full = {name: weights.read(model, name).clone() for name in key.where}
    assert {name: w.shape for name, w in hidden.items()} == {name: w.shape for name, w in full.items()}
    for name, w in full.items():
        model.get_parameter(name).copy_(w + hidden[name])
    after = method.logits(model, key)
    # Two methods state their logits in standard deviations of whole layers, which are no sign's business.
    unit = (after * before).sum() / before.square().sum() if words[0] == "frequency" else 1
    if words[0] == "watermas":
        layers = key.secret["positions"][:, 0]
        unit = torch.stack([(after / before)[layers == i].median() for i in layers])
    assert torch.allclose(after, before * unit, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    for name in full:
        model.get_parameter(name).copy_(hidden[name])  # nothing of what is read: no bit stands out of rounding
    assert method.logits(model, key).abs().max() <= 1e-3 * before.abs().max()


@pytest.mark.parametrize("words", READ, ids=lambda words: "-".join(words))
@torch.no_grad()
def test_what_is_not_read_knows_nothing_of_what_is(results, words):
    method, model, key = build(results, *words)
    hidden, before = method.unread(model, key), method.logits(model, key)
    noise = torch.Generator().manual_seed(0)
    for name in key.where:
        w = model.get_parameter(name)
        random = torch.randn(w.shape, generator=noise) / 4
        model.get_parameter(name).add_(random - other_read(method, model, key, name, random))
    found = method.unread(model, key)
    for name, w in hidden.items():
        if words[0] in ("uchida", "frequency"):  # a mean over 96 channels and a basis, which are rounded
            assert torch.allclose(found[name], w, atol=1e-6)
        else:
            assert torch.equal(found[name], w)
    assert (method.logits(model, key) - before).abs().mean() > 0.1 * before.abs().mean()


def other_read(method, model, key: Key, name: str, random: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that is not read, by putting it in the weight's place."""
    w = model.get_parameter(name)
    kept = w.clone()
    w.copy_(random)
    hidden = method.unread(model, key)[name]
    w.copy_(kept)
    return hidden


def test_a_method_that_does_not_say_is_taken_to_read_everything():
    assert Method().unread(None, None) is None
