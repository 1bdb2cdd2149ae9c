"""At which p-value the owner's mark is detected, and an attacker's claim."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench import judge, metrics, run
from bench.errors import UserError
from bench.types import Snapshot
from tests.helpers import tiny


def flipped(key, wrong: int):
    """The same key with so many bits of its message inverted: it reads that many wrong."""
    message = key.message.clone()
    message[:wrong] = ~message[:wrong]
    return replace(key, message=message)


@pytest.mark.parametrize(
    ("more", "bar"),
    [
        ([], metrics.CLAIM),
        (["verify.claim=1e-12"], 1e-12),
        (["verify.alpha=1e-30"], 1e-30),
        (["verify.claim=0.1"], 1e-9),
    ],
)
def test_claims_are_judged_at_the_boundary_and_the_owner_at_alpha(marked, more, bar):
    x, model, key = marked("uchida", "none", "method.n_bits=128", *more)
    need, alpha = metrics.matches_needed(128, bar, 2), x.verify.alpha  # in both tails
    assert x.bar == bar
    for matches, passes in ((need, True), (need - 1, False)):
        claim = flipped(key, 128 - matches)
        row = judge.Judge(x, key, {}).row(Snapshot("claim", None, model, claim=claim), utility=0.0)
        assert (row.claim_ber, row.claim_detected) == (1 - matches / 128, passes)
        assert row.detected
        # as an owner's key it has alpha to pass
        owned = judge.Judge(x, claim, {}).row(Snapshot("owner", None, model), utility=0.0)
        assert owned.detected == (matches >= metrics.matches_needed(128, alpha, x.tests))


def test_the_bar_is_the_methods_own_where_it_names_one_and_changes_no_hash(results):
    words = ("neuralmark", "none", "method.n_bits=128")
    x = run.prepare(tiny(results, *words))
    assert x.bar == 2.0**-128 == x.cfg.verify.claim
    again = run.prepare(x.cfg)  # where it is written now
    assert (again.hashes, again.bar) == (x.hashes, x.bar)
    assert run.prepare(tiny(results, *words, "verify.claim=1e-20")).hashes != x.hashes
    uchida = run.prepare(tiny(results, "uchida", "none"))
    assert uchida.bar == metrics.CLAIM
    assert math.log2(uchida.cfg.verify.claim) == -80
    with pytest.raises(UserError, match=r"verify\.claim=2\.0: must be in"):
        run.prepare(tiny(results, *words, "verify.claim=2"))


def test_a_short_message_proves_no_claim(marked):
    x, model, key = marked("uchida", "none")  # 64 bits
    row = judge.Judge(x, key, {}).row(Snapshot("claim", None, model, claim=key), utility=0.0)
    assert (row.claim_ber, row.claim_detected, row.detected) == (0, False, True)
