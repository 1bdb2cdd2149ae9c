"""A claimant who may choose the reference afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks._reference import chosen
from bench import judge, metrics
from bench.models import align
from bench.types import Snapshot, Victim


@pytest.mark.parametrize("method", ["uchida", "neuralmark"])
def test_a_chosen_reference_reads_any_key_and_is_refused(marked, method):
    """Of a network that the claimant never marked, in the order of his reference: a forgery that no hash prevents."""
    x, model, _ = marked(method, "none", "method.n_bits=32")
    key = x.method.keygen(model, np.random.default_rng(5), x.task)
    reference = chosen(model, x.method, key, x.task.example(1))
    images = x.task.example(4)
    with torch.no_grad():
        assert torch.allclose(reference(images), model(images), atol=1e-4)
    # A judge who takes it: the victim's channels are put in the claimant's order, and read his message.
    ref = align.prepared(reference, align.hidden(x.method, reference, key), x.task.example())
    error, log10_p, _ = judge.judged(x, align.aligned(ref, model).model, key)
    assert log10_p < -9
    assert x.method.accepts(key)
    before = judge.judged(x, model, key)[0]
    assert error < 0.1 < before
    # This one does not: the reference was not committed before the dispute.
    one = judge.Judge(x, key, {"utility_host": 99.0, "utility_victim": 99.0}, committed=model)
    row = one.row(Snapshot("reference", None, model, claim=key, reference=reference), utility=99.0)
    assert (row.claim_ber, row.claim_detected) == (before, False)
    assert "not committed" in row.align


def test_forge_tries_it_on_every_method(marked):
    for method in ("uchida", "neuralmark", "frequency", "watermas"):
        x, model, key = marked(method, "forge", "attack.tries=[1]", "attack.steps=[1]", "attack.grind=[]")
        robbed = Victim(model, x.method, x.task.view("outsider"), where=key.where)
        points = [s for s in x.attack.run(robbed, np.random.default_rng(0), None) if s.knob == "reference"]
        assert len(points) == 1
        assert bool(points[0].skipped) == (points[0].reference is None)
        assert (points[0].reference is not None) or method == "watermas"


def test_committing_decides_between_two_marks():
    row = {
        "status": "ok",
        "knob": "keys",
        "detected": True,
        "claim_detected": True,
        "utility": 9.0,
        "utility_victim": 9.0,
    }
    assert metrics.verdict({**row, "committed": True}, "overwrite", 5.0) == "later claim"
    assert metrics.verdict({**row, "committed": False}, "overwrite", 5.0) == "ambiguous"
