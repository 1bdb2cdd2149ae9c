"""Trigger sets: exact nulls, what a claim is worth, and what training is given."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import nn

from bench import judge, metrics, run, stages, threat
from bench.errors import ConfigError
from methods.trigger import Draws, Trigger, named, share
from tests.helpers import config, restoration, rng, tiny

METHOD = Trigger(n_bits=100, per_batch=16, situation="scratch", binding="none")
BOUND = replace(METHOD, binding="hash")


class Net(nn.Module):
    """Names classes of 8-pixel pictures; `constant`: the same one, whatever it sees."""

    def __init__(self, classes: int = 10, seed: int = 0, constant: bool = False):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3 * 64, classes)
        if constant:
            nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head((x.flatten(1).float() - 128) / 64)


TASK = SimpleNamespace(
    kind="small", gives="classes", example=lambda n: torch.zeros(n, 3, 8, 8), head=lambda net: "head"
)


def keys(method: Trigger, count: int, classes: int = 10):
    draws, host = rng(3), Net(classes)
    return [method.keygen(host, draws, TASK) for _ in range(count)]


@pytest.mark.parametrize("method", [METHOD, BOUND])
@pytest.mark.parametrize("suspect", [Net(seed=1), Net(constant=True)])
def test_matches_of_strangers_are_binomial(method, suspect):
    """Whatever the suspect: the labels are uniform and independent of it. Mean within 5 standard errors of n / C, and
    the variance what a binomial's is: chi square of 300 keys, at 1e-6 in either tail."""
    n, count, p = METHOD.n_bits, 300, 0.1
    matched = np.array([float(method.extract(suspect, key, TASK).sum()) for key in keys(method, count)])
    assert abs(matched.mean() - n * p) < 5 * np.sqrt(n * p * (1 - p) / count)
    dispersion = ((matched - n * p) ** 2).sum() / (n * p * (1 - p))
    assert chi2.ppf(1e-6, count) < dispersion < chi2.isf(1e-6, count)


def test_the_null_is_no_less_than_what_naming_one_class_matches():
    for key in keys(METHOD, 20):
        rate = METHOD.chance(key)
        each = [float((key.secret["labels"] == c).float().mean()) for c in range(10)]
        assert rate == pytest.approx(max(each))
        assert rate >= 0.1
        soft = (key.secret["labels"] == int(np.argmax(each))).float()
        assert METHOD.evidence(soft, key)[1] > -1  # a network that names it is no suspect
        assert METHOD.evidence(torch.ones(100), key)[1] == pytest.approx(100 * np.log10(rate))


def test_how_many_pictures_alpha_takes():
    """The docstring's arithmetic: the least p is p0^n."""
    assert [metrics.matches_needed(n, 1e-9, 1, 0.1) for n in (8, 9)] == [None, 9]
    assert [metrics.matches_needed(n, 1e-9, 1, 0.5) for n in (29, 30)] == [None, 30]


def test_pictures_are_learned_and_the_key_says_by_how_many_a_stranger_matches(marked):
    x, model, key = marked("trigger")
    assert torch.equal(x.method.extract(model, key, x.task), torch.ones(64))
    host = stages.load_weights(stages.skeleton(x), stages.host(x).path)
    error, log10_p, ok = judge.judged(x, host, key)
    assert error > 0.7
    assert not ok
    assert log10_p > -3
    service = threat.Service(model, "labels")
    assert torch.equal(x.method.extract(service, key, x.task), torch.ones(64))


def test_outputs_that_are_no_numbers_match_nothing(marked):
    x, _, key = marked("trigger")
    broken = stages.load_weights(stages.skeleton(x), stages.mark(x).path)
    with torch.no_grad():
        broken.get_parameter(f"{x.task.head(broken)}.bias").fill_(float("nan"))
    assert float(x.method.extract(broken, key, x.task).sum()) == 0


def embedded(key, batches=7, start=None):
    """What task.loss is given, batch by batch, and the host of an embedding without a network's training."""
    given, method = [], replace(METHOD, per_batch=30)

    def loss(model, batch):
        given.append(batch)
        return torch.zeros(())

    def fit(model, task, loss, state):
        (draws,) = state
        if start:
            draws.load_state_dict(start)
        for _ in range(batches):
            loss(model, (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)))
        fit.state = draws.state_dict()
        return model

    fit.seed = 5
    method.embed(Net(), key, SimpleNamespace(loss=loss), fit)
    return given, fit.state


def test_each_batch_has_its_triggers_in_one_pass_all_of_them_before_any_again():
    (key,) = keys(METHOD, 1)
    given, _ = embedded(key)
    assert [len(images) for images, _ in given] == [34] * 7
    assert all(torch.equal(labels[:4], torch.arange(4)) for _, labels in given)
    images, labels = (torch.cat([batch[i][4:] for batch in given]) for i in (0, 1))
    index = [int((key.secret["images"] == picture).flatten(1).all(1).nonzero()) for picture in images]
    assert sorted(index[:100]) == sorted(index[100:200]) == [*range(100)]
    assert index[:100] != index[100:200]
    assert torch.equal(labels, key.secret["labels"][index])


def test_draws_are_the_seeds_and_go_on_where_they_were_kept():
    (key,) = keys(METHOD, 1)
    whole, _ = embedded(key, 7)
    first, state = embedded(key, 3)
    then, _ = embedded(key, 4, state)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, [*first, *then], strict=True))
    assert not torch.equal(Draws(1, 100).next(50), Draws(2, 100).next(50))


def test_the_network_that_embedding_starts_from_is_a_null_model():
    (key,) = keys(METHOD, 1)
    key = replace(key, secret={**key.secret, "labels": named(Net(), key.secret["images"])})
    before = METHOD.chance(key)
    embedded(key)
    assert before < METHOD.chance(key) == 1.0


@pytest.mark.parametrize("method", [METHOD, BOUND])
def test_keys_that_are_tampered_with(method):
    (key,) = keys(method, 1)
    assert method.accepts(key)

    def accepts(message=key.message, **secret):
        return method.accepts(replace(key, message=message, secret={**key.secret, **secret}))

    labels, images, free = key.secret["labels"].clone(), key.secret["images"].clone(), method is METHOD
    some = key.message.clone()
    some[3] = False
    assert not accepts(some)  # what is not named so is nine tenths of all
    assert not accepts(~key.message)
    assert not accepts(rate=key.secret["rate"] - 0.02)
    assert not accepts(rate=torch.tensor([float("nan")]))
    assert not accepts(labels=labels[:50])
    assert not accepts(labels=torch.zeros_like(labels))  # one class for all, by the rate of another set
    assert accepts(rate=key.secret["rate"] + 0.1)  # against whoever claims it
    labels[[0, 1]] = labels[[1, 0]] if labels[0] != labels[1] else (labels[[0, 1]] + 1) % 10
    images[0, 0, 0, 0] ^= 1
    least = torch.tensor([share(labels)])
    assert accepts(labels=labels, rate=least) == free
    assert accepts(images=images) == free
    if not free:
        seed = key.secret["seed"].clone()
        seed[0] ^= 1
        assert not accepts(seed=seed)
        assert not accepts(classes=torch.tensor([11]))
        assert not method.accepts(replace(key, secret={k: v for k, v in key.secret.items() if k != "seed"}))


def test_who_may_name_what_the_network_says_forges_for_nothing(results):
    words = ("attack.tries=[1,5]", "verify.keys=0")
    for binding, passes in (("none", True), ("hash", False)):
        rows = {r.knob: r for r in run.run(tiny(results, "trigger", "forge", f"method.binding={binding}", *words)).rows}
        row = rows["named"]
        assert (row.claim_ber, row.claim_detected) == (0, passes)
        assert row.claim_log10_p < np.log10(metrics.CLAIM)  # enough, but for the check
        assert 1 / 10 <= row.claim_chance < 0.3
        assert row.detected
        assert row.utility == row.utility_victim
        assert not rows["tries"].claim_detected
        assert rows["none"].chance == row.chance > 0.1


def test_a_mark_of_which_more_than_half_is_gone_is_not_an_inverted_one():
    (key,) = keys(METHOD, 1)
    soft = (torch.arange(100) < 47).float()
    error, log10_p = METHOD.evidence(soft, key)
    row = {"ber": error, "log10_p": log10_p, "detected": True, "chance": METHOD.chance(key)}
    assert metrics.is_detected(log10_p, 1e-9)
    assert metrics.reading(row) == (pytest.approx(0.53), "")
    assert metrics.reading({**row, "chance": None}) == (pytest.approx(0.47), metrics.INVERTED)


def test_networks_that_name_no_class_or_one(picture_folder, results):
    with pytest.raises(ConfigError, match="2 classes or more: task=small has 1"):
        METHOD.keygen(Net(1), rng(), TASK)
    outcome = run.job(config(*restoration(picture_folder), "method=trigger", f"results_dir={results}"))
    assert (outcome.code, outcome.message) == (
        2,
        "method=trigger asks which of 2 classes or more: task=restoration has 0",
    )
