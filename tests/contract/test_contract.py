"""What every method and every attack found in conf/ must keep, whatever it does."""

from __future__ import annotations

import copy
from dataclasses import fields

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from bench import controls, judge, metrics, run, spec, stages
from bench.errors import ConfigError
from bench.models import base
from bench.report import labels
from bench.store.runs import read_run
from bench.train import Fit
from bench.types import Method, Victim
from methods.uchida import Uchida
from tests.helpers import (
    ATTACKS,
    COMPLETE,
    FIRST,
    MARKING,
    METHODS,
    SMALL,
    TRIED,
    build_attack,
    config,
    facts,
    marks_of,
    tiny,
)


def slower(method: str) -> tuple:
    """Of a slow test: four methods' are for CI as well."""
    return COMPLETE if method in FIRST else (pytest.mark.slow,)


def pairs(methods: list[str]) -> list:
    """Every method with every attack. A diagonal of them in the default run, each method, and each attack once; all in
    the slow tests."""
    return [
        pytest.param(m, a, marks=() if (j - i) % len(methods) == 0 else pytest.mark.slow)
        for i, m in enumerate(methods)
        for j, a in enumerate(ATTACKS)
    ]


@pytest.mark.parametrize("method", MARKING)
def test_every_bit_is_embedded(marked, method):
    x, model, key = marked(method)
    error = metrics.ber(x.method.extract(model, key, x.task), key.message)
    assert error == 0
    assert x.method.accepts(key)
    assert stages.mark(x)["ber"] == 0


@pytest.mark.parametrize("method", MARKING)
def test_the_mark_costs_little(marked, method):
    x, _, _ = marked(method)
    assert abs(stages.host(x)["utility"] - stages.mark(x)["utility"]) <= 3


@pytest.mark.parametrize("method", MARKING)
def test_hosts_are_not_detected(marked, method):
    x, _, key = marked(method)
    host = stages.load_weights(stages.skeleton(x), stages.host(x).path)
    _, log10_p, ok = judge.judged(x, host, key)
    assert not ok
    assert log10_p > -6


@pytest.mark.parametrize("method", MARKING)
def test_random_keys_match_by_chance(marked, method):
    """1,000 keys of n bits: their mean within 5 standard errors of 1/2, and none detected. Of a mark in classes a bit
    is a class drawn uniformly, independently of what the network names: one of C is right, and the chance by which
    evidence is judged no less."""
    x, _, key = marked(method)
    found = controls.random_keys(x)
    right = 1 / x.task.signature.num_classes if x.method.access == "outputs" else 0.5
    assert found["random_keys"] == 1000
    assert found["mean_ber"] == pytest.approx(1 - right, abs=5 * np.sqrt(right * (1 - right) / (1000 * key.n_bits)))
    assert x.method.chance(key) >= right
    assert found["false_positives"] == 0
    assert -9 < found["least_log10_p"] < -1


@pytest.mark.parametrize("method", MARKING)
def test_trials_are_what_keygen_and_extract_give_one_by_one(marked, method):
    x, model, own = marked(method)
    other = stages.skeleton(x, "stranger")
    one, many = np.random.default_rng(11), np.random.default_rng(11)
    count = 0
    for key, soft in x.method.trials(model, own, other, many, 5, x.task):
        alone = x.method.keygen(other, one, x.task)
        assert torch.equal(key.message, alone.message)
        assert key.secret.keys() == alone.secret.keys()
        assert all(torch.equal(key.secret[name], alone.secret[name]) for name in alone.secret)
        assert torch.allclose(soft, x.method.extract(model, alone, x.task), atol=1e-4)
        count += 1
    assert count == 5


@pytest.mark.parametrize(("method", "attack"), pairs(TRIED))
def test_pairs_run_or_say_why_not_and_repeat_bit_for_bit(results, method, attack):
    cfg = tiny(results, method, attack)
    first = run.run(cfg)
    assert first.status in ("done", "skipped", "cached")
    assert {row.status for row in first.rows} <= {"ok", "skipped"}
    for row in first.rows:
        assert row.status == "ok" or row.error
        assert row.utility is None or 0 <= row.utility <= 100
        assert (row.ber is None) == (method == "none") or row.status == "skipped"
        assert row.ber is None or (0 <= row.ber <= 1 and row.log10_p <= 0)
        assert (row.claim_ber is None) == (row.claim_detected is None)
    knobs = [row.knob for row in first.rows]
    assert knobs[: 1 if method == "none" else 2] == (["none"] if method == "none" else ["host", "none"])
    again = run.run(cfg)
    assert again.status in ("cached", "skipped")
    assert facts(again.rows) == facts(first.rows)
    forced = run.run(OmegaConf.merge(cfg, {"force": True}))
    assert facts(forced.rows) == facts(first.rows)


@pytest.mark.parametrize("method", [pytest.param(m, marks=marks_of(m, also=FIRST)) for m in MARKING])
def test_cached_equals_uncached(results, tmp_path, method):
    cached = run.run(tiny(results, method, "finetune", "force=true", "train.epochs=1")).rows
    uncached = run.run(tiny(tmp_path, method, "finetune", "train.epochs=1")).rows
    assert facts(cached) == facts(uncached)


@pytest.mark.parametrize(("method", "attack"), pairs(MARKING))
def test_attacks_leave_their_victim_bit_identical(marked, method, attack):
    x, model, key = marked(method, attack)
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    victim = Victim(
        model,
        x.method,
        x.task.view("attacker"),
        fresh=lambda seed: x.task.build(x.model, seed),
        where=key.where,
        key=key,
    )
    if x.attack.skip(victim):
        return
    for _ in x.attack.run(victim, np.random.default_rng(0), Fit(x.train, 0, may_diverge=True)):
        pass
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_are_handed_no_more_than_they_state(monkeypatch, results, attack):
    seen = []
    x = run.prepare(tiny(results, "uchida", attack, "force=true"))

    class Spy(type(x.attack)):
        def skip(self, victim):
            seen.append(victim)
            return "seen enough"

    Spy.__module__ = type(x.attack).__module__
    values = {f.name: getattr(x.attack, f.name) for f in fields(x.attack)}
    object.__setattr__(x, "attack", Spy(**values))
    list(run.rows(x))
    (victim,) = seen
    assert victim.key is None or "key" in x.attack.knows
    assert victim.where is None or {"key", "layer"} & set(x.attack.knows)
    assert victim.task.role == ("attacker" if x.attack.data == "attacker" else "outsider")
    for split in ("owner", "test", *(("attacker", "validation") if x.attack.data == "none" else ())):
        with pytest.raises(PermissionError):
            next(victim.task.batches(split, 4))
    with pytest.raises(PermissionError):
        victim.task.utility(victim.model)
    with pytest.raises(PermissionError):
        victim.task.view("judge")


@pytest.mark.parametrize("method", TRIED)
def test_owners_never_draw_from_the_attackers_data_or_the_test_set(monkeypatch, tmp_path, method):
    from bench.tasks.classification import ClassificationTask

    drawn = []
    draw = ClassificationTask.tensors

    def record(self, split):
        drawn.append((self.role, split))
        return draw(self, split)

    monkeypatch.setattr(ClassificationTask, "tensors", record)
    x = run.prepare(tiny(tmp_path, method, "none", "train.epochs=1"))
    stages.mark(x) if x.method.marks else stages.host(x)
    assert ("owner", "owner") in drawn
    assert {s for role, s in drawn if role == "owner"} <= {"owner", "validation"}
    assert {role for role, s in drawn if s == "test"} == {"judge"}


def test_seeds_share_a_config_hash_and_nothing_else(results):
    def hashes(*more: str) -> tuple[str, str]:
        return run.prepare(tiny(results, "uchida", "prune", *more)).hashes

    (id0, cell0), (id1, cell1) = hashes(), hashes("seed=1")
    assert cell0 == cell1
    assert id0 != id1
    assert hashes("attack.seed=7")[1] == hashes("seed=1", "attack.seed=7")[1] != cell0
    for change in ("train.lr=0.02", "attack.scope=layer", "method.lambda_=0.5", "verify.alpha=0.001", "data.crop=1"):
        assert hashes(change)[1] != cell0, change
    for same in ("debug=true", "threads=1", f"results_dir={results}", "data.label=others", "model.label=x"):
        assert hashes(same) == (id0, cell0), same


def test_a_detector_that_always_says_yes_fails_its_control(monkeypatch, results):

    monkeypatch.setattr(Uchida, "extract", lambda self, model, key, task: key.message.float())
    outcome = run.job(tiny(results, "uchida", "none", "seed=9", "train.epochs=1", "method.n_bits=40"))
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "control failed" in outcome.message
    assert run.job(tiny(results, "uchida", "none", "seed=9", "train.epochs=1", "method.n_bits=40")).code == 1


@pytest.mark.parametrize("method", MARKING)
def test_a_detector_that_knows_the_network_but_not_the_key_fails_its_control(monkeypatch, marked, results, method):
    x, _, owner = marked(method, "none")
    words, cls, read = (method, "none", "verify.keys=50"), type(x.method), type(x.method).extract

    def yes(self, model, key, task):
        mine = metrics.ber(read(self, model, owner, task), owner.message) == 0
        return key.message.float() if mine else read(self, model, key, task)

    monkeypatch.setattr(cls, "extract", yes)
    if "trials" in vars(cls):  # a shortcut past extract
        outcome = run.job(tiny(results, *words))
        assert (outcome.status, outcome.code) == ("failed", 1)
        assert "trials reads other bits" in outcome.message
        monkeypatch.setattr(cls, "trials", Method.trials)
    outcome = run.job(tiny(results, *words))
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "50 of 50 random keys verify" in outcome.message
    df = labels.variants([read_run(outcome.path)])
    assert set(df.loc[df["knob"] == "host", "verdict"]) == {"FALSE ALARM"}
    assert run.job(tiny(results, *words)).code == 1  # found done, it fails again


def test_a_points_seconds_include_what_it_was_made_from(results):
    rows = run.run(tiny(results, "uchida", "finetune", "attack.epochs=3", "force=true")).rows
    seconds = [row.seconds for row in rows if row.knob == "epoch"]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_host_and_mark_are_shared_by_all_attacks_and_alpha(results):
    a = run.prepare(tiny(results, "uchida", "prune"))
    b = run.prepare(tiny(results, "neuralmark", "finetune", "verify.alpha=0.01"))
    c = run.prepare(tiny(results, "uchida", "quantize", "attack.seed=4"))
    assert a.host_identity == b.host_identity
    assert a.mark_identity == c.mark_identity
    assert a.mark_identity != b.mark_identity


@pytest.mark.parametrize("method", [pytest.param(m, marks=slower(m)) for m in MARKING])
def test_every_attack_runs_in_channels_last(monkeypatch, tmp_path, method):
    """The layout that CUDA gets, and some networks on a CPU: nobody may take a weight's storage for its order."""
    monkeypatch.setattr(base, "to_device", lambda net, device: net.to(device, memory_format=torch.channels_last))
    for attack in ATTACKS[MARKING.index(method) :: len(MARKING)]:
        outcome = run.job(tiny(tmp_path, method, attack, "train.epochs=4"))
        assert outcome.status in ("done", "skipped"), (attack, outcome.message)
        host, victim = outcome.rows[:2]
        assert victim.ber < 0.1, attack
        assert not host.detected


def test_small_overrides_name_real_options():
    """A typo in SMALL would silently make the contract tests slow or large."""
    known = {k for m in METHODS for k in config(f"method={m}").method}
    known |= {k for a in ATTACKS for k in config(f"attack={a}").attack}
    assert set(SMALL) <= known


def test_attacks_that_train_must_state_their_data():
    for words in (
        ["prune", "attack.finetune_after=1"],
        ["finetune", "attack.data=none"],
        ["overwrite", "attack.data=none"],
    ):
        with pytest.raises(ConfigError, match=r"attack\.data=attacker"):
            build_attack(*words)


def test_attackers_randomness_is_its_own(results):
    def rows(*more: str) -> list:
        cfg = tiny(results, "uchida", "prune", "attack.criterion=random", "force=true", *more)
        return [(r.knob, r.strength, r.ber, r.utility) for r in run.run(cfg).rows]

    assert rows() == rows()
    assert rows("attack.seed=1") != rows()
    assert spec.derive(0, "attack", "prune") != spec.derive(0, "owner", "key")


def test_names_agree_everywhere():
    for group, names in (("method", METHODS), ("attack", ATTACKS)):
        for name in names:
            cls = spec.target(config(f"{group}={name}")[group], group)
            assert cls.__module__ == f"{group}s.{name}"
            assert cls.__name__.rstrip("_") == "".join(part.capitalize() for part in name.split("_"))


@pytest.mark.gpu
def test_a_gpu_run_gives_the_same_kind_of_rows(tmp_path):
    rows = run.run(tiny(tmp_path, "neuralmark", "quantize", "device=cuda")).rows
    assert all(row.status in ("ok", "skipped") for row in rows)
    assert next(row for row in rows if row.knob == "none").ber == 0
