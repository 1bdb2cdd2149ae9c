"""NeuralMark's mathematics: what the paper defines, to float precision, and the traps of public code."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.errors import ConfigError
from methods.neuralmark import filtered, hashed
from tests.helpers import NEURALMARK, net, reference_logits, rng


def test_neuralmark_message_is_the_hash_of_the_matrix():
    matrix = rng().standard_normal((512, 256), dtype=np.float32)
    stream = hashlib.shake_256(matrix.astype("<f4").tobytes(order="C")).digest(32)
    bits = [(byte >> (7 - i)) & 1 for byte in stream for i in range(8)]
    assert hashed(matrix).tolist() == [bool(b) for b in bits]
    assert len(hashed(matrix[:, :100])) == 100


def test_neuralmark_published_length_arithmetic():
    # METHODS: 589,824 weights, n = 256: each round keeps ones/n of the length cut to a multiple of n.
    key = replace(NEURALMARK, n_bits=256, k=512, rounds=4, layer="*").keygen(
        nn.ModuleDict({"stage": nn.Conv2d(256, 256, 3), "head": nn.Linear(2, 2)}), rng(), None
    )
    ones, size = int(key.message.sum()), 589_824
    for _ in range(4):
        size = size // 256 * ones
    assert len(filtered(torch.arange(589_824), key.message, 4)) == size


def test_neuralmark_logits_are_the_papers_also_in_channels_last():
    model, key = net(), NEURALMARK.keygen(net(), rng(), None)
    w = model["stage2"].weight.detach().numpy()
    expected = reference_logits(w, key.secret["matrix"].numpy(), key.message.numpy(), 16, 2)
    np.testing.assert_allclose(NEURALMARK.logits(model, key).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    read = NEURALMARK.reader(key, torch.device("cpu"))
    for _ in range(2):  # the first call finds the index set, the second uses it
        np.testing.assert_allclose(read(model["stage2"].weight).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    model.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(NEURALMARK.logits(model, key).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    fresh = NEURALMARK.reader(key, torch.device("cpu"))
    np.testing.assert_allclose(fresh(model["stage2"].weight).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_neuralmark_gradient_is_that_of_the_plain_formula():
    key = NEURALMARK.keygen(net(), rng(), None)
    w1, w2 = (net()["stage2"].weight.detach().clone().requires_grad_() for _ in range(2))
    truth = key.message.float()
    bce = nn.functional.binary_cross_entropy_with_logits
    bce(NEURALMARK.reader(key, torch.device("cpu"))(w1), truth).backward()
    kept = w2.reshape(-1)
    for _ in range(2):
        kept = kept[: len(kept) // 32 * 32]
        kept = kept[key.message[torch.arange(len(kept)) % 32]]
    z = torch.stack([kept[: len(kept) // 16 * 16][j::16].mean() for j in range(16)])
    bce(z @ key.secret["matrix"], truth).backward()
    torch.testing.assert_close(w1.grad, w2.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("rounds", [1, 4])
def test_two_keys_share_few_filtered_weights(rounds):
    # METHODS, measured: 51% at R = 1, 6.1% at R = 4. What two filters of independent messages share is 2^-R.
    n, size = 256, 589_824
    draws = rng(3)
    sets = [
        set(filtered(torch.arange(size), torch.from_numpy(draws.integers(0, 2, n).astype(bool)), rounds).tolist())
        for _ in range(2)
    ]
    share = len(sets[0] & sets[1]) / len(sets[0])
    assert share == pytest.approx(2.0**-rounds, rel=0.25)


def test_neuralmark_refuses_a_small_layer_with_the_arithmetic():
    with pytest.raises(ConfigError, match=r"needs 16,384 weights \(k=512 x 2\^4 filter rounds x 2\).*carries 3,456"):
        replace(NEURALMARK, n_bits=256, k=512, rounds=4).keygen(net(), rng(), None)


def test_neuralmark_without_filter_or_pool():
    plain = replace(NEURALMARK, rounds=0, pool=False)
    model, key = net(), plain.keygen(net(), rng(), None)
    z = model["stage2"].weight.detach().reshape(-1)[:16]
    torch.testing.assert_close(plain.logits(model, key), z @ key.secret["matrix"])


def test_neuralmark_verification_recomputes_the_message():
    key = NEURALMARK.keygen(net(), rng(), None)
    assert NEURALMARK.accepts(key)
    matrix = key.secret["matrix"].clone()
    matrix[0, 0] = torch.nextafter(matrix[0, 0], torch.tensor(9.0))  # one unit in the last place is enough
    assert not NEURALMARK.accepts(replace(key, secret={"matrix": matrix}))
    free = replace(NEURALMARK, binding=False)
    assert free.accepts(free.keygen(net(), rng(), None))
