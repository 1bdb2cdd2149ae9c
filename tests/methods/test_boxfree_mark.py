"""A real box-free mark, small and crude: attacks on it, and what the judge does with them."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bench import controls, judge, metrics, run, spec, stages, threat
from bench.models import branches
from bench.store import runs
from bench.store.keys import load_key
from bench.train import Fit
from bench.types import Victim
from tests.helpers import config, restoration

TINY = (
    *("method=boxfree", "task.sigma=5", "train.batch_size=9", "verify.alpha=1e-4", "verify.keys=200"),
    *("method.n_bits=16", "method.width=8", "method.depth=2", "method.fidelity=10", "method.lr=0.01"),
    *("method.epochs=70", "method.surrogate.width=8", "method.surrogate.depth=2", "method.surrogate_epochs=20"),
    *("method.tune_epochs=10", "method.absorb_epochs=40"),
)


QUICK = (
    *("attack=surrogate", "attack.surrogates=[same/l2,plain/l1]", "attack.epochs=100", "attack.lr=0.01"),
    *("attack.students.plain.width=8", "attack.students.plain.depth=3"),
)


def crude(results, picture_folder, *more):
    return config(*restoration(picture_folder), *TINY, f"results_dir={results}", *more)


@pytest.fixture
def marked(results, picture_folder):
    x = run.prepare(crude(results, picture_folder, "attack=none"))
    entry = stages.mark(x)
    model, key = stages.opened(x, entry)
    return x, entry, model, key


@pytest.mark.slow
@pytest.mark.quick
def test_the_mark_is_read_from_outputs_and_from_nothing_clean(marked):
    x, entry, model, key = marked
    assert entry["ber"] == 0
    assert judge.judged(x, model, key)[2]
    host = stages.load_weights(stages.skeleton(x), stages.host(x).path)
    plain = stages.load_weights(stages.fresh(x), stages.host(x).path)
    assert torch.equal(x.task.answers(host), x.task.answers(plain))
    assert not judge.judged(x, host, key)[2]
    own = judge.Judge(x, key, {})
    rows = [own.control(*control) for control in controls.clean(x)]
    assert [row.knob for row in rows] == ["clean/inputs", "clean/truth"]
    assert not any(row.detected for row in rows)
    assert rows[1].utility == 100
    assert {(row.run_id, row.config_hash) for row in rows} == {x.hashes}
    assert {metrics.verdict(vars(row), "removal", 1.0) for row in rows} == {"control"}


@pytest.mark.slow
@pytest.mark.quick
def test_a_flipped_bit_at_the_barrier_is_read_as_flipped(marked):
    """BOXFREE's second trap: an extractor that has learned one mark by heart reads it whatever is there."""
    x, _, model, key = marked
    swapped = copy.deepcopy(model)
    for place in (0, 7, 15):
        mark = branches.branch(swapped).mark
        mark.view(-1)[place] = 1 - mark.view(-1)[place]
        read = x.method.extract(swapped, key, x.task) > 0.5
        assert int((read != key.message).sum()) == 1
        assert bool(read[place] != key.message[place])
        mark.view(-1)[place] = 1 - mark.view(-1)[place]


@pytest.mark.slow
@pytest.mark.quick
def test_what_the_extractor_learns_does_not_depend_on_the_message(marked):
    """The binomial null: a message that decided nothing about its reader is as good as drawn afterwards."""
    x, _, _, _ = marked
    made = []
    for message in (torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool)):
        model = stages.load_weights(stages.skeleton(x), stages.host(x).path)
        key = replace(x.method.keygen(model, np.random.default_rng(0), x.task), message=message)
        fit = stages.owner_fit(x)
        quick = replace(x.method, epochs=2, adversarial=True, surrogate_epochs=1, tune_epochs=1)
        model = quick.embed(model, key, x.task.view("owner"), fit)
        made.append(({k: v for k, v in model.state_dict().items() if not k.endswith(".mark")}, key.secret))
    for one, two in zip(*made, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    start = x.method.keygen(model, np.random.default_rng(0), x.task).secret
    assert not all(torch.equal(start[name], made[0][1][name]) for name in start)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("attack", ["surrogate", "postprocess", "residual", "finetune"])
def test_attacks_leave_their_victim_bit_identical(marked, attack):
    x, _, model, _ = marked
    words = {"surrogate": ["attack.epochs=1", "attack.clean=[]"], "finetune": ["attack.epochs=1"]}
    made = spec.build(config("task=restoration", f"attack={attack}", *words.get(attack, [])).attack, "attack")
    before = copy.deepcopy(model.state_dict())
    victim = Victim(model, x.method, x.task.view("attacker"), fresh=lambda seed: x.task.build(x.model, seed))
    count = sum(1 for _ in made.run(victim, np.random.default_rng(0), Fit(x.train, 0, may_diverge=True)))
    assert count >= 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.slow
@pytest.mark.quick
def test_surrogates_rows_controls_and_figure(results, picture_folder, tmp_path):
    cfg = crude(results, picture_folder, *QUICK, "method.adversarial=false")
    first = run.run(cfg)
    knobs = [row.knob for row in first.rows]
    assert knobs == ["host", "none", "clean/inputs", "clean/truth", "same/l2", "plain/l1", "clean/same/l2"]
    by = {row.knob: row for row in first.rows}
    assert by["same/l2"].detected
    assert not any(row.detected for row in first.rows if metrics.is_control(row.knob))
    assert by["same/l2"].utility > by["none"].utility - 2  # dB: as good as what it learned from
    assert first.controls["random_keys"] == 200
    assert first.controls["false_positives"] == 0
    assert [line["knob"] for line in first.outputs] == [k for k in knobs if k not in ("clean/inputs", "clean/truth")]
    assert first.outputs[0]["psnr_to_unmarked"] == 100
    assert 26 < first.outputs[1]["psnr_to_unmarked"] < 60
    assert first.outputs[0]["presence"] < 0.1
    assert first.outputs[3]["sees"] == 7  # three convolutions
    with Image.open(first.figure) as image:
        assert image.size[0] > 800
        assert len(set(image.convert("L").tobytes())) > 50
    assert runs.read_run(first.path)["outputs"] == first.outputs
    again = run.run(cfg)
    assert (again.status, again.outputs, again.figure) == ("cached", first.outputs, first.figure)
    forced = run.run(crude(results, picture_folder, *QUICK, "method.adversarial=false", "force=true"))
    assert [row.ber for row in forced.rows] == [row.ber for row in first.rows]
    assert [row.utility for row in forced.rows] == [row.utility for row in first.rows]


@pytest.mark.slow
@pytest.mark.quick
def test_a_service_keeps_its_weights_and_an_absorbed_model_shows_them(results, picture_folder):
    closed = run.run(crude(results, picture_folder, "attack=prune"))
    assert (closed.status, closed.rows[-1].status) == ("skipped", "skipped")
    assert "needs the weights, and boxfree's victim is a service" in closed.message
    x = run.prepare(crude(results, picture_folder, "attack=prune", "method.absorbed=true", "attack.ratios=[0.0,0.99]"))
    assert branches.branch(stages.skeleton(x)) is None
    rows = {(row.knob, row.strength): row for row in run.run(x.cfg).rows}
    assert rows["none", None].detected
    assert rows["ratio", 0.0].ber == rows["none", None].ber == 0
    assert not rows["ratio", 0.99].detected
    assert not rows["host", None].detected


@pytest.mark.slow
@pytest.mark.quick
def test_what_all_outputs_share_can_be_taken_from_them(results, picture_folder):
    more = ("attack=residual", "attack.pairs=[8,400]", "attack.highpass=[400]")
    rows = run.run(crude(results, picture_folder, *more)).rows
    made = [row for row in rows if row.knob in ("pairs", "highpass")]
    assert [row.strength for row in made] == [8, 400, 400]
    assert all(row.status == "ok" for row in made)
    changed = run.run(
        crude(results, picture_folder, "attack=postprocess", "attack.noise=[0]", "attack.brightness=[-255]")
    ).rows
    by = {(row.knob, row.strength): row for row in changed}
    assert by["noise", 0].ber == by["none", None].ber
    assert by["noise", 0].utility == by["none", None].utility
    assert not by["brightness", -255].detected


@pytest.mark.slow
@pytest.mark.quick
def test_a_logo_is_one_bit_with_a_null_of_its_own(results, picture_folder):
    cfg = crude(
        results, picture_folder, "method.payload=image", "attack=none", "verify.keys=50", "method.adversarial=false"
    )
    first = run.run(cfg)
    host, victim, *clean = first.rows
    assert (host.n_bits, victim.n_bits) == (1, 1)
    assert victim.detected
    assert victim.ber == 0
    assert not any(row.detected for row in (host, *clean))
    assert first.controls is None
    x = run.prepare(cfg)
    key = load_key(stages.mark(x).path / "key.safetensors")
    assert key.secret["null"][2] == x.task.view("owner").size("validation")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["method.absorbed=true"], [], pytest.param(["method.payload=image"], marks=pytest.mark.quick)]
)
def test_anybody_trains_an_extractor_that_reads_his_own_message(results, picture_folder, more):
    """Of a network that absorbed the mark, of a service (whose outputs are enough), and for a logo."""
    words = ("attack=forge", "attack.data=attacker", "method.adversarial=false", "verify.keys=0", *more)
    x = run.prepare(crude(results, picture_folder, *words, "verify.claim=1e-4"))  # of 16 bits, none are 2^-80
    *before, row = run.run(x.cfg).rows
    assert (row.knob, row.strength, row.claim_detected, row.detected) == ("trained", 300, True, True)
    assert row.claim_ber == 0
    assert metrics.verdict(vars(row) | {"log10_p_host": None}, "forge", 1.0) == "forged"  # a crude host is none
    assert row.utility == next(r.utility for r in before if r.knob == "none")
    model, _ = stages.opened(x, stages.mark(x))
    one, two = forged(x, model), forged(x, model)
    assert judge.judged(x, model, one, x.bar)[2]
    assert all(torch.equal(one.secret[name], value) for name, value in two.secret.items())


def forged(x, model):
    (point,) = x.attack.run(threat.stolen(x, model, None), np.random.default_rng(0), Fit(x.train, 0))
    return point.claim


def test_a_claim_on_outputs_says_that_it_needs_data(results, picture_folder):
    x = run.prepare(crude(results, picture_folder, "attack=forge", "method.absorbed=true"))
    robbed = threat.stolen(x, stages.skeleton(x), None)
    assert "attack.data=attacker" in x.attack.skip(robbed)
    assert replace(x.attack, data="attacker").skip(robbed) is None
    assert threat.out_of_reach(x) == ""
