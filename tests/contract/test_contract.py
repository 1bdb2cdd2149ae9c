"""What every method and every attack found in conf/ must keep, whatever it does."""

from __future__ import annotations

import pytest
import torch

from bench import metrics, run, spec, stages
from bench.check import properties
from bench.check.properties import facts
from bench.errors import ConfigError
from bench.models import base
from bench.report import labels
from bench.store.runs import read_run
from bench.types import Method
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
@pytest.mark.parametrize(
    "asked",
    [
        properties.every_bit_is_embedded,
        properties.keys_are_drawn_from_rng_alone,
        properties.extraction_repeats_and_leaves_the_suspect,
        properties.hosts_are_not_detected,
        properties.random_keys_match_by_chance,
        properties.trials_are_what_keygen_and_extract_give,
    ],
    ids=lambda asked: asked.__name__,
)
def test_a_mark_keeps(marked, method, asked):
    asked(*marked(method))


@pytest.mark.parametrize("method", MARKING)
def test_the_mark_costs_little(marked, method):
    properties.the_mark_costs_little(*marked(method), most=3)


@pytest.mark.parametrize(("method", "attack"), pairs(TRIED))
def test_pairs_run_or_say_why_not_and_repeat_bit_for_bit(results, method, attack):
    properties.pairs_run_or_say_why_not(cfg := tiny(results, method, attack))
    for row in run.run(cfg).rows:
        assert (row.ber is None) == (method == "none") or row.status == "skipped"


@pytest.mark.parametrize("method", [pytest.param(m, marks=marks_of(m, also=FIRST)) for m in MARKING])
def test_cached_equals_uncached(results, tmp_path, method):
    cached = run.run(tiny(results, method, "finetune", "force=true", "train.epochs=1")).rows
    uncached = run.run(tiny(tmp_path, method, "finetune", "train.epochs=1")).rows
    assert facts(cached) == facts(uncached)


@pytest.mark.parametrize(("method", "attack"), pairs(MARKING))
def test_attacks_leave_their_victim_bit_identical(marked, method, attack):
    properties.victims_stay_bit_identical(*marked(method, attack))


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_are_handed_no_more_than_they_state(results, attack):
    properties.attackers_are_handed_no_more_than_they_state(run.prepare(tiny(results, "uchida", attack, "force=true")))


@pytest.mark.parametrize("method", TRIED)
def test_owners_never_draw_from_the_attackers_data_or_the_test_set(tmp_path, method):
    x = run.prepare(tiny(tmp_path, method, "none", "train.epochs=1"))
    with properties.draws(x) as drawn:
        stages.mark(x) if x.method.marks else stages.host(x)
    properties.own_draws(drawn)


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
