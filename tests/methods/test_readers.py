"""What Uchida's and NeuralMark's readers share: null, keys, penalty, and reading without this code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bench import metrics, stages
from bench.types import Key
from tests.helpers import NEURALMARK, UCHIDA, net, reference_logits, rng


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_random_keys_match_half_of_a_hosts_bits(method):
    # The binomial null: 0.5 within 5 standard errors over all bits, and the spread of a binomial.
    model, draws = net(), rng(7)
    rates = [
        1 - metrics.ber(method.extract(model, key, None), key.message)
        for key in (method.keygen(model, draws) for _ in range(400))
    ]
    assert np.mean(rates) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(400 * 32))
    assert np.std(rates) == pytest.approx(0.5 / np.sqrt(32), rel=0.2)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK, replace(UCHIDA, binding="hash")])
def test_keys_come_from_their_generator_alone(method):
    model = net()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global generator is the point)
    first = method.keygen(model, rng(5))
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = method.keygen(model, rng(5))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert same_key(first, second)
    assert not same_key(first, method.keygen(model, rng(6)))


def same_key(a: Key, b: Key) -> bool:
    same = a.where == b.where and torch.equal(a.message, b.message) and a.secret.keys() == b.secret.keys()
    return same and all(torch.equal(a.secret[k], b.secret[k]) for k in a.secret)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_the_penalty_follows_the_weight(method):
    # The trap of public code: a tensor averaged once at construction, whose gradient never changes.
    model = net()
    key = method.keygen(model, rng())
    read = method.reader(key, torch.device("cpu"))
    w = model["stage2"].weight
    before = read(w).detach().clone()
    with torch.no_grad():
        w.mul_(-2)
    torch.testing.assert_close(read(w), -2 * before)


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_extraction_draws_nothing_and_keeps_no_gradient(method):
    model = net()
    key = method.keygen(model, rng())
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
