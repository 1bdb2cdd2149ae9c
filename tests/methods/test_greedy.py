"""Greedy residuals: the public code's arithmetic, the hinge, the signature; what is public is claimed and rewritten."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from torch import nn
from torch.nn import functional

from attacks._rewrite import rewrite
from bench import metrics
from bench.errors import ConfigError
from methods.greedy import ORDER, Greedy, hashed, number, opened, residuals, stated
from tests.helpers import config, net, rng

GREEDY = Greedy(
    n_bits=32, row=53, divider=2, margin=0.1, statement="ours", binding="signature",
    lambda_=0.01, situation="scratch", layer=None,
)  # fmt: skip


def published(param: torch.Tensor, size: tuple[int, int], divider: int) -> torch.Tensor:
    """What the public code computes of one layer (eil/greedy-residuals, models/residual.py), line by line."""
    flat = param.contiguous().view(-1)[: param.numel() // size[1] * size[1]]
    pooled = functional.adaptive_avg_pool1d(flat[None, None], size[0] * size[1]).squeeze(0).view(size)
    if divider != 0:
        index = torch.argsort(torch.abs(pooled), dim=1)[:, : int(size[1] / divider + 0.5)]
        for i in range(size[0]):
            pooled[i, index[i]] = 0
    return torch.mean(pooled, dim=1)


# the public code's own: a first convolution, pooled to more than it has; whole bins; cut and uneven; a linear layer
@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (32, 53, 2, 2), (37, 19, 3, 3), (100, 77)])
@pytest.mark.parametrize("divider", [0, 2, 10])
def test_residuals_are_the_public_codes(shape, divider):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for n, row in ((32, 53), (256, 253)):
        if weight.numel() < row:
            continue
        kept = replace(GREEDY, row=row, divider=divider).kept
        torch.testing.assert_close(
            residuals(weight, n, row, kept), published(weight, (n, row), divider), rtol=1e-5, atol=1e-7
        )


def test_residuals_are_the_same_in_channels_last():
    model, key = net(), GREEDY.keygen(net(), rng(), None)
    before = GREEDY.logits(model, key)
    assert torch.equal(before, residuals(model["stage2"].weight, 32, 53, GREEDY.kept))
    model.to(memory_format=torch.channels_last)
    assert torch.equal(before, GREEDY.logits(model, key))


def test_no_loss_is_every_sign_right_by_the_margin():
    truth = torch.arange(32) % 3 == 0
    sign = 2 * truth.float() - 1
    assert GREEDY.embedding_loss(0.1 * sign, truth.float()) == 0
    assert GREEDY.embedding_loss(0.15 * sign, truth.float()) == 0
    y = 0.1 * sign
    y[5] = -y[5]  # wrong by the margin: twice that is asked
    assert GREEDY.embedding_loss(y, truth.float()).item() == pytest.approx(0.2)
    y[5] = 0
    assert GREEDY.embedding_loss(y, truth.float()).item() == pytest.approx(0.1)


def test_descent_ends_with_every_sign_right_by_the_margin():
    key = GREEDY.keygen(net(), rng(), None)
    weight = net()["stage2"].weight.detach().clone().requires_grad_()
    read, truth = GREEDY.reader(key, weight.device), key.message.float()
    assert ((read(weight) > 0) != key.message).any()
    descent = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    for _ in range(300):
        descent.zero_grad()
        loss = GREEDY.embedding_loss(read(weight), truth)
        if loss == 0:
            break
        loss.backward()
        descent.step()
    assert loss == 0
    assert ((2 * truth - 1) * read(weight) >= GREEDY.margin).all()


def test_gradient_reaches_the_larger_weights_alone():
    # 32 bits of 53 entries of one weight each: the 27 smallest of each row are zeroed
    weight = torch.randn(32, 53, generator=torch.Generator().manual_seed(1), requires_grad=True)
    residuals(weight, 32, 53, GREEDY.kept).sum().backward()
    kept = weight.grad != 0
    assert GREEDY.kept == 26
    assert (kept.sum(1) == 26).all()
    for row, found in zip(weight.detach().abs(), kept, strict=True):
        assert row[found].min() > row[~found].max()
    assert torch.equal(weight.grad[kept], torch.full((32 * 26,), 1 / 53))


def test_message_is_the_hash_of_a_signature_over_the_statement():
    key = GREEDY.keygen(net(), rng(), None)
    public, signature = (key.secret[part].numpy().tobytes() for part in ("public", "signature"))
    Ed25519PublicKey.from_public_bytes(public).verify(signature, b"ours")
    assert key.message.tolist() == hashed(signature, 32).tolist()
    assert GREEDY.accepts(key)
    again, other = GREEDY.keygen(net(), rng(), None), GREEDY.keygen(net(), rng(1), None)
    assert torch.equal(key.message, again.message)
    assert not torch.equal(key.message, other.message)
    said = replace(GREEDY, statement="theirs").keygen(net(), rng(), None)
    assert not torch.equal(key.message, said.message)
    assert torch.equal(key.secret["public"], said.secret["public"])


def test_the_private_key_is_in_no_key():
    private = rng().bytes(32)
    key = GREEDY.keygen(net(), rng(), None)
    public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    assert key.secret["public"].numpy().tobytes() == public  # it is the key's: the draw is the one looked for
    assert all(private not in x.numpy().tobytes() for x in key.secret.values())
    assert sorted(key.secret) == ["public", "signature", "statement"]


def altered(x: torch.Tensor, at: int = 7) -> torch.Tensor:
    x = x.clone()
    x[at] = ~x[at] if x.dtype == torch.bool else x[at] ^ 1
    return x


@pytest.mark.parametrize("part", ["public", "signature"])
def test_a_key_that_was_tampered_with_is_refused(part):
    key = GREEDY.keygen(net(), rng(), None)
    assert not GREEDY.accepts(replace(key, message=altered(key.message)))
    assert not GREEDY.accepts(replace(key, secret={**key.secret, part: altered(key.secret[part])}))
    assert not GREEDY.accepts(replace(key, secret={**key.secret, part: key.secret[part][:-1]}))
    assert not GREEDY.accepts(replace(key, secret={k: x for k, x in key.secret.items() if k != part}))
    statement = {**key.secret, "statement": altered(key.secret["statement"], 0)}
    assert not GREEDY.accepts(replace(key, secret=statement))
    # somebody else's signature over the same words, with the owner's message or with the owner's public key
    other = GREEDY.keygen(net(), rng(1), None)
    assert not GREEDY.accepts(replace(other, message=key.message))
    assert not GREEDY.accepts(replace(other, secret={**other.secret, "public": key.secret["public"]}))
    assert GREEDY.accepts(other)


def test_an_empty_statement_can_be_signed():
    silent = replace(GREEDY, statement="")
    key = silent.keygen(net(), rng(), None)
    assert stated(key) == b""
    assert silent.accepts(key)


def test_ground_claims_are_valid_and_get_better():
    model = net()
    claims = list(GREEDY.forgeries(model, rng(3), None, None, [1, 50, 5000]))
    assert [(knob, tries) for knob, tries, _ in claims] == [("grind", 1), ("grind", 50), ("grind", 5000)]
    errors = [metrics.ber(GREEDY.extract(model, key, None), key.message) for _, _, key in claims]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
    assert errors[-1] <= 7 / 32  # 5,000 tries: 7 of 32 wrong or less has p = 1.05e-3
    assert all(GREEDY.accepts(key) for _, _, key in claims)
    assert stated(claims[0][2]).startswith(b"ours 1")
    assert list(GREEDY.forgeries(model, rng(3), None, None, [])) == []


def test_ground_claims_of_a_length_that_is_no_whole_bytes():
    method, model = replace(GREEDY, n_bits=13), net()
    (_, _, key), *_ = method.forgeries(model, rng(3), None, None, [3000])
    assert metrics.ber(method.extract(model, key, None), key.message) <= 1 / 13  # 3,000 tries of 2^13
    assert method.accepts(key)


def test_a_signature_is_made_by_hand_as_the_standard_says():
    seed, text = rng().bytes(32), b"ours"
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = private.public_key().public_bytes_raw(), private.sign(text)
    scalar, prefix = opened(seed)
    nonce = number(hashlib.sha512(prefix + text).digest())
    challenge = number(hashlib.sha512(signature[:32] + public + text).digest())
    assert ((nonce + challenge * scalar) % ORDER).to_bytes(32, "little") == signature[32:]


def test_without_binding_what_is_read_is_the_claim():
    free, model = replace(GREEDY, binding="none"), net()
    key = free.keygen(model, rng(), None)
    assert key.secret == {}
    assert free.accepts(key)
    ((knob, _, claim),) = free.forgeries(model, rng(), None, None, [])
    assert knob == "read"
    assert metrics.ber(free.extract(model, claim, None), claim.message) == 0


def test_the_mark_is_read_and_rewritten_without_a_key():
    # Where it is read is no secret: a stranger's key finds the owner's message, and writes another over it.
    model = net()
    owner, stranger = GREEDY.keygen(model, rng(), None), GREEDY.keygen(model, rng(1), None)
    rewrite(model, GREEDY, owner, owner.message.numpy())
    read = GREEDY.extract(model, stranger, None) > 0.5
    assert int((read != owner.message).sum()) <= 1  # the selection moves with the weights
    for _ in range(5):
        rewrite(model, GREEDY, stranger, stranger.message.numpy())
    assert metrics.ber(GREEDY.extract(model, stranger, None), stranger.message) == 0
    assert metrics.ber(GREEDY.extract(model, owner, None), owner.message) > 0.25


def test_trials_read_once_what_extract_reads():
    model = net()
    owner = GREEDY.keygen(model, rng(), None)
    found = list(GREEDY.trials(model, owner, net(), rng(2), 4, None))
    for key, soft in found:
        assert torch.equal(soft, GREEDY.extract(model, key, None))
    assert len({tuple(key.message.tolist()) for key, _ in found}) == 4


def test_what_cannot_be_is_refused_with_the_arithmetic():
    small = nn.ModuleDict({"stage": nn.Conv2d(3, 4, 3), "head": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"needs 106 weights \(two a bit, n_bits=32 x 2, in whole rows of row=53\)"):
        replace(GREEDY, layer="head").keygen(small, rng(), None)
    assert replace(GREEDY, row=50).keygen(small, rng(), None).where == ("stage.weight",)  # 108 weights
    with pytest.raises(ConfigError, match=r"n_bits=257: SHA-256.* has 256 bits"):
        replace(GREEDY, n_bits=257)
    with pytest.raises(ConfigError, match="divider=1 zeroes all 53"):
        replace(GREEDY, divider=1)
    for name, value in (("divider", -1), ("row", 0), ("margin", -1.0), ("binding", "rsa")):
        with pytest.raises(ConfigError, match=f"method.{name}"):
            replace(GREEDY, **{name: value})


def test_every_bit_can_be_written_at_two_weights_a_bit():
    # The least the layer may have: neighbours share what lies between them, and each has a weight of its own.
    tight = replace(GREEDY, n_bits=53, divider=0)
    weight = torch.zeros(106, requires_grad=True)
    message = torch.from_numpy(rng(4).integers(0, 2, 53)).float()
    descent = torch.optim.SGD([weight], lr=0.1)
    for _ in range(200):
        descent.zero_grad()
        tight.embedding_loss(residuals(weight, 53, 53, tight.kept), message).backward()
        descent.step()
    assert ((residuals(weight, 53, 53, tight.kept) > 0) == message.bool()).all()


def test_the_yaml_has_the_public_codes_constants():
    node = config("method=greedy").method
    assert (node.n_bits, node.row, node.divider, node.margin, node.lambda_) == (256, 253, 2, 0.1, 0.01)
    assert np.isclose(Greedy(**{k: v for k, v in node.items() if k != "_target_"}).kept, 126)
