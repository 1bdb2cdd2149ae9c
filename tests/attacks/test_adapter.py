"""The attack on low-rank changes: dropped, the network is its host again; factored anew, it is what it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from attacks.adapter import NO_HOST, changes, rank, rotated
from bench import metrics, run, stages
from bench.errors import ConfigError
from bench.models import weights
from tests.contract.test_language import small
from tests.helpers import build_attack

LORA = [
    *("method.situation=lora", "method.layer=h.1.attn.c_attn", "model.lora={rank: 4, alpha: 32, targets: [c_attn]}"),
    *("train.finetune={epochs: 6, lr: 0.01}", "attack.scales=[0,0.5,1]", "verify.keys=0"),
]


@pytest.mark.slow
@pytest.mark.quick
def test_the_mark_is_in_the_sum_and_goes_with_the_change_alone(results):
    outcome = run.run(small(results, "neuralmark", "adapter", *LORA, "method.rounds=1"))
    rows = {(row.knob, row.strength): row for row in outcome.rows}
    victim, host = rows["none", None], rows["host", None]
    assert victim.ber == 0
    assert not host.detected
    dropped = rows["scale", 0.0]
    assert not dropped.detected
    assert 0.2 < dropped.ber < 0.8
    assert rows["scale", 1.0].ber == 0
    assert rows["scale", 1.0].utility == pytest.approx(victim.utility, abs=1e-6)
    assert rows["rotated", None].ber == 0  # GL(r) leaves the product as it is
    assert rows["rotated", None].utility == pytest.approx(victim.utility, abs=1e-4)
    assert rows["merged", 1.0].status == "ok"


def test_the_marked_network_is_a_low_rank_change_of_its_public_host(results):
    x = run.prepare(small(results, "neuralmark", "adapter", *LORA, "method.rounds=1"))
    model, _ = stages.opened(x, stages.mark(x))
    host = stages.public(x)
    found = changes(host, model)
    assert sorted(found) == ["h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"]
    assert {rank(change) for change in found.values()} == {4}
    # Whoever is compared with it was trained likewise, without a mark.
    base = stages.load_weights(stages.fresh(x), stages.baseline(x).path)
    assert {rank(change) for change in changes(host, base).values()} == {4}
    assert stages.baseline(x).path != stages.host(x).path


def test_factors_turned_by_gl_multiply_to_the_same():
    rng = np.random.default_rng(0)
    b, a = torch.randn(30, 3), torch.randn(3, 20)
    change = b @ a
    assert rank(change) == 3
    assert torch.allclose(rotated(change, rng), change, atol=1e-4)


def test_what_has_no_adapter_says_so(results):
    tuned = ["method.situation=finetune", "train.finetune={epochs: 1}"]
    for words, said in [((), NO_HOST), (tuned, "in full rank: there is no adapter, attack=merge")]:
        rows = run.run(small(results, "uchida", "adapter", *words, "verify.keys=0")).rows
        assert rows[-1].status == "skipped"
        assert said in rows[-1].error


def test_attacks_on_it_leave_victim_and_host_alone(results):
    x = run.prepare(small(results, "neuralmark", "adapter", *LORA, "method.rounds=1"))
    model, key = stages.opened(x, stages.mark(x))
    from bench import threat
    from bench.train import Fit

    before = copy.deepcopy(model.state_dict())
    robbed = threat.stolen(x, model, key, lambda: stages.public(x))
    for _ in x.attack.run(robbed, np.random.default_rng(0), Fit(x.train, 0, may_diverge=True)):
        pass
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert metrics.ber(x.method.extract(model, key, x.task), key.message) == 0
    assert [*weights.weights(model)] == [*weights.weights(stages.public(x))]


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("neuralmark", ["method.situation=lora"], "no layer is adapted; model.lora="),
        ("neuralmark", LORA[:1] + LORA[2:3], "marks an adapted layer: method.layer=h.1.attn.c_attn"),
        ("frequency", ["method.situation=lora"], "trains a change of other layers"),
        ("uchida", [*LORA[:3], "method.n_bits=64"], "carries 24"),
    ],
)
def test_a_change_that_cannot_carry_the_mark_is_refused(results, method, words, said):
    with pytest.raises(ConfigError, match=said):
        run.run(small(results, method, "none", *words))
    with pytest.raises(ConfigError, match=r"attack\.others=0"):
        build_attack("adapter", "attack.data=none")
