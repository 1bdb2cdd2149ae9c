"""Forged claims: signs, learned secrets, splices, and what binding is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks.forge import flipped, learned
from bench import metrics, run
from tests.helpers import NEURALMARK, net, tiny


def test_flipped_signs_forge_a_linear_reader(marked):
    x, model, _ = marked("uchida")
    key = x.method.keygen(model, np.random.default_rng(9))
    assert metrics.ber(x.method.extract(model, key, None), key.message) > 0.2
    claim = flipped(model, x.method, key)
    assert metrics.ber(x.method.extract(model, claim, None), claim.message) == 0
    assert torch.equal(claim.secret["projection"].abs(), key.secret["projection"].abs())
    assert x.method.accepts(claim)
    bound = replace(x.method, binding="hash")
    key = bound.keygen(model, np.random.default_rng(9))
    claim = flipped(model, bound, key)
    assert metrics.ber(bound.extract(model, claim, None), claim.message) == 0
    assert not bound.accepts(claim)


@pytest.mark.parametrize("k", [32, 64])
def test_flipped_signs_find_the_dimension_of_the_bits(k):
    """Also where the secret is square and both dimensions have n entries."""
    method, model = replace(NEURALMARK, k=k, n_bits=32, binding=False), net()
    key = method.keygen(model, np.random.default_rng(1))
    claim = flipped(model, method, key)
    assert metrics.ber(method.extract(model, claim, None), key.message) == 0


def test_flipped_signs_break_the_hash_of_neuralmark(marked):
    x, model, _ = marked("neuralmark")
    claim = flipped(model, x.method, x.method.keygen(model, np.random.default_rng(9)))
    assert metrics.ber(x.method.extract(model, claim, None), claim.message) == 0
    assert not x.method.accepts(claim)


@pytest.mark.parametrize("method", ["uchida", "neuralmark"])
def test_learned_secrets_read_any_message_and_leave_no_gradient(marked, method):
    x, model, _ = marked(method)
    key = x.method.keygen(model, np.random.default_rng(9))
    ((steps, claim),) = learned(model, x.method, key, [50], 0.1)
    assert steps == 50
    assert metrics.ber(x.method.extract(model, claim, None), key.message) == 0
    assert torch.equal(claim.message, key.message)
    assert x.method.accepts(claim) == (method == "uchida")
    assert all(p.grad is None for p in model.parameters())


def test_forge_rows_say_what_binding_is_worth(results):
    rows = {m: run.run(tiny(results, m, "forge")).rows for m in ("uchida", "neuralmark")}
    flip = {m: next(r for r in rows[m] if r.knob == "flip") for m in rows}
    assert flip["uchida"].claim_detected
    assert not flip["neuralmark"].claim_detected
    # the row still shows that it would have passed without the check
    assert flip["neuralmark"].claim_ber == 0
    assert metrics.is_detected(flip["neuralmark"].claim_log10_p, 1e-9)
    for m in rows:
        tries = [r for r in rows[m] if r.knob == "tries"]
        assert [r.strength for r in tries] == [1, 20]
        assert tries[1].claim_ber <= tries[0].claim_ber
        assert not tries[1].claim_detected
        assert all(r.detected and r.utility == r.utility_victim for r in tries)


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
