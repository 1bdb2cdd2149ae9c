"""Box-free marks: barrier, extractor, nulls; surrogates, changed outputs; what the judge does with them."""

from __future__ import annotations

import copy
import math
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from attacks.postprocess import Changed
from bench import branches, metrics, networks, run, spec, store
from bench.command import command as repeating
from bench.keys import load_key
from bench.train import Fit
from bench.types import ConfigError, Key, Method, Victim
from methods import boxfree
from methods.barrier import BLANK, Extractor
from tests.conftest import config
from tests.test_restoration import SIZES, folder, picture, words  # noqa: F401 (a fixture)

CPU = torch.device("cpu")


def method(*more: str) -> boxfree.Boxfree:
    return spec.build(config("task=restoration", "method=boxfree", *more).method, "method")


def key_of(m: boxfree.Boxfree, seed: int = 0) -> Key:
    return m.keygen(nn.Identity(), np.random.default_rng(seed))


def maps_of(message: torch.Tensor, count: int = 5, side: int = 32, contrast: float = 0.4) -> torch.Tensor:
    """Readings as of marked pictures: squares at 1/2 +- contrast."""
    grid = message.float().view(1, 1, math.isqrt(len(message)), -1)
    return (
        (BLANK + contrast * (2 * grid - 1))
        .expand(count, -1, -1, -1)
        .repeat_interleave(side // grid.shape[2], 2)
        .repeat_interleave(side // grid.shape[3], 3)
    )


# Verdicts


def test_a_key_holds_its_extractor():
    m = method()
    one, two, other = key_of(m), key_of(m), key_of(m, 1)
    state = torch.random.get_rng_state()
    key_of(m, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one.secret[k], two.secret[k]) for k in one.secret)
    assert not torch.equal(one.message, other.message)
    net = m.extractor(one, CPU)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in Extractor().parameters())
    assert 35_000 < sum(p.numel() for p in net.parameters()) < 50_000


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.floats(0.21, 0.5))
def test_bits_are_the_means_of_squares(seed, contrast):
    m = method()
    key = key_of(m, seed)
    soft = m.soft(maps_of(key.message, contrast=contrast), key)
    assert metrics.ber(soft, key.message) == 0
    wrong = key.message.clone()
    wrong[seed % 64] ^= True
    assert metrics.ber(m.soft(maps_of(wrong, contrast=contrast), key), key.message) == 1 / 64


def test_a_message_that_is_hardly_there_is_not_there():
    m = method()
    key = key_of(m)
    for contrast, found in ((0.19, False), (0.21, True)):
        soft = m.soft(maps_of(key.message, contrast=contrast), key)
        assert bool((soft != 0.5).all()) is found
        assert metrics.is_detected(m.evidence(soft, key)[1], 1e-9) is found
    # Pictures that each carry a message of their own have none in common.
    many = torch.cat([maps_of(torch.from_numpy(np.random.default_rng(i).random(64) < 0.5), 1) for i in range(300)])
    assert torch.equal(m.soft(many, key), torch.full((64,), 0.5))
    assert m.readings(many, key)["presence_each"] > 0.3
    gone = torch.full((2, 1, 32, 32), math.nan)
    assert torch.equal(m.soft(gone, key), torch.full((64,), 0.5))


def test_an_uncentred_correlation_calls_a_blank_reading_similar():
    """BOXFREE's first trap: what the papers threshold at 0.95 is high for a reading that says nothing."""
    m = method("method.payload=image")
    key = key_of(m)
    white = torch.ones(4, 1, 32, 32)
    blank = m.readings(white, replace(key, secret=key.secret | {"mark": 1 - 0.3 * key.secret["mark"]}))
    assert blank["nc"] > 0.95
    read = m.readings(torch.full((4, 1, 32, 32), BLANK) + 0.02 * torch.randn(4, 1, 32, 32), key)
    assert abs(read["correlation"]) < 0.2


def test_a_logos_p_value_is_a_predictive_t_distributions():
    m = method("method.payload=image")
    key = key_of(m)
    rng = np.random.default_rng(0)
    rate = {0.05: 0, 0.5: 0}
    for _ in range(4000):  # nulls fitted to 20 pictures, suspects from the same normal distribution
        sample = 0.1 * rng.standard_normal(21)  # of a deviation that is not raised
        null = torch.tensor([sample[:20].mean(), sample[:20].std(ddof=1), 20.0])
        guess = replace(key, secret=key.secret | {"null": null})
        p = m.evidence(torch.tensor([(1 + sample[20]) / 2]), guess)[1]
        for level in rate:
            rate[level] += p <= math.log10(level)
    assert rate[0.05] / 4000 == pytest.approx(0.05, abs=0.015)
    assert rate[0.5] / 4000 == pytest.approx(0.5, abs=0.04)
    sure = replace(key, secret=key.secret | {"null": torch.tensor([0.0, 0.1, 250.0])})
    assert m.evidence(torch.tensor([0.99]), sure)[1] < -9
    assert m.evidence(torch.tensor([0.51]), sure)[1] > -1
    low = replace(key, secret=key.secret | {"null": torch.tensor([-0.4, 0.06, 250.0])})
    assert m.evidence(torch.tensor([0.52]), low)[1] < -6
    assert m.evidence(torch.tensor([0.5]), low)[1] == 0  # absent: below the null's mean or not


def test_there_is_no_random_key_for_a_logo():
    m = method("method.payload=image")
    assert list(m.trials(nn.Identity(), key_of(m), nn.Identity(), np.random.default_rng(0), 10, None)) == []


def test_a_logo_that_shows_nothing_is_refused(tmp_path):
    Image.fromarray(np.tile(np.array([[0, 255], [255, 0]], np.uint8), (16, 16))).save(tmp_path / "checks.png")
    with pytest.raises(ConfigError, match="is no presence; take one of larger"):
        key_of(method("method.payload=image", f"method.logo={tmp_path / 'checks.png'}"))


def test_a_logo_may_be_a_file(tmp_path):
    ours = boxfree.drawn(None)
    assert ours.shape == (1, 32, 32)
    assert 0.1 < ours.mean() < 0.6
    Image.fromarray((255 * ours[0].numpy()).astype(np.uint8)).resize((96, 96)).save(tmp_path / "logo.png")
    assert (boxfree.drawn(str(tmp_path / "logo.png")) - ours).abs().mean() < 0.15


DEEP = ("attack=surrogate", "model@attack.students.residual=unet")
FELT = ("attack=surrogate", "attack.surrogates=[same/perceptual]", "attack.clean=[]")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["method.n_bits=60"], "bits fill a square grid"),
        (["method.payload=sound"], "method.payload=sound: not known"),
        (["method.logo=no/where.png"], "method.logo=no/where.png: no such file"),
        (["method.presence=0.7"], "presence in [0, 0.5)"),
        (["method.n_bits=49"], "7 squares do not fit a side of 16 pixels"),
        (["method.depth=5"], "pictures of 16 pixels cannot be halved so often"),
        (["attack=surrogate", "attack.surrogates=[other/l2]"], "attack.surrogates=other: not known"),
        (["attack=surrogate", "attack.surrogates=[same/l3]"], "attack.surrogates=l3: not known"),
        (["attack=surrogate", "attack.surrogates=[]"], "attack.surrogates is empty"),
        (["attack=surrogate", "attack.augment=mixup"], "attack.augment=mixup: not known"),
        (["attack=surrogate", "attack.before=blur", "attack.strength=90"], "must be from 0 to 10"),
        (["attack=surrogate", "attack.vgg=no/where"], "attack.vgg=no/where: no such file"),
        (["attack=surrogate", "attack.data=none"], "this attack trains: it needs attack.data=attacker"),
        (["attack=postprocess", "attack.jpeg=[0]"], "attack.jpeg=jpeg: strength 0 must be from 1 to 100"),
        (["attack=postprocess", "attack.shift=[0.5]"], "strength 0.5 must be a whole number"),
        (["attack=surrogate", "attack.clean=[same/l1]"], "attack.clean=same/l1: not one of attack.surrogates"),
        (["attack=surrogate", "model@attack.students.residual=resnet18"], "model resnet18 gives no images"),
        (
            ["attack=surrogate", "model@attack.students.residual=unet", "attack.students.residual.depth=5"],
            "multiples of 32",
        ),
        (
            ["attack=surrogate", "attack.surrogates=[same/perceptual]", "attack.clean=[]", "attack.vgg=README.md"],
            "is no safetensors",
        ),
        (["method.adversarial=true", "method.surrogate.depth=5"], "task.patch=16: unet takes multiples of 32"),
        (["data.validation=0"], "raise data.validation"),
        (["attack=residual", "attack.pairs=[4,4]"], "attack.pairs=[4, 4]: needs distinct values"),
    ],
)
def test_one_line_says_what_cannot_be(tmp_path, folder, more, expected):  # noqa: F811
    outcome = run.job(config(*words(folder), "method=boxfree", "attack=none", f"results_dir={tmp_path}", *more))
    assert (outcome.status, outcome.code) == ("failed", 2), outcome.message
    assert expected in outcome.message


def test_classifiers_give_no_pictures(tmp_path):
    outcome = run.job(config("method=boxfree", "attack=none", f"results_dir={tmp_path}", "data.test_limit=50"))
    assert (outcome.code, outcome.message) == (2, "method=boxfree marks pictures: task=restoration")


# What the judge does with them: a real mark, small and crude


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


def crude(results, folder, *more):  # noqa: F811
    return config(*words(folder), *TINY, f"results_dir={results}", *more)


@pytest.fixture
def marked(results, folder):  # noqa: F811
    x = run.prepare(crude(results, folder, "attack=none"))
    entry = run.mark(x)
    model, key = run.victim(x, entry)
    return x, entry, model, key


@pytest.mark.slow
@pytest.mark.quick
def test_the_mark_is_read_from_outputs_and_from_nothing_clean(marked):
    x, entry, model, key = marked
    assert entry["ber"] == 0
    assert run.judge(x, model, key)[2]
    host = run.load_weights(run.skeleton(x), run.host(x).path)
    plain = run.load_weights(run.fresh(x), run.host(x).path)
    assert torch.equal(x.task.answers(host), x.task.answers(plain))
    assert not run.judge(x, host, key)[2]
    rows = list(run.untouched(x, key, {}))
    assert [row.knob for row in rows] == ["clean/inputs", "clean/truth"]
    assert not any(row.detected for row in rows)
    assert rows[1].utility == 100
    assert {(row.run_id, row.config_hash) for row in rows} == {x.hashes()}
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
        model = run.load_weights(run.skeleton(x), run.host(x).path)
        key = replace(x.method.keygen(model, np.random.default_rng(0)), message=message)
        fit = run.owner_fit(x)
        quick = replace(x.method, epochs=2, adversarial=True, surrogate_epochs=1, tune_epochs=1)
        model = quick.embed(model, key, x.task.view("owner"), fit)
        made.append(({k: v for k, v in model.state_dict().items() if not k.endswith(".mark")}, key.secret))
    for one, two in zip(*made, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    start = x.method.keygen(model, np.random.default_rng(0)).secret
    assert not all(torch.equal(start[name], made[0][1][name]) for name in start)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("attack", ["surrogate", "postprocess", "residual", "finetune"])
def test_attacks_leave_their_victim_bit_identical(marked, attack):
    x, _, model, _ = marked
    words_ = {"surrogate": ["attack.epochs=1", "attack.clean=[]"], "finetune": ["attack.epochs=1"]}
    made = spec.build(config("task=restoration", f"attack={attack}", *words_.get(attack, [])).attack, "attack")
    before = copy.deepcopy(model.state_dict())
    victim = Victim(model, x.method, x.task.view("attacker"), fresh=lambda seed: x.task.build(x.model, seed))
    count = sum(1 for _ in made.run(victim, np.random.default_rng(0), Fit(x.train, 0, may_diverge=True)))
    assert count >= 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.slow
@pytest.mark.quick
def test_surrogates_rows_controls_and_figure(results, folder, tmp_path):  # noqa: F811
    cfg = crude(results, folder, *QUICK, "method.adversarial=false")
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
    assert store.read_run(first.path)["outputs"] == first.outputs
    again = run.run(cfg)
    assert (again.status, again.outputs, again.figure) == ("cached", first.outputs, first.figure)
    forced = run.run(crude(results, folder, *QUICK, "method.adversarial=false", "force=true"))
    assert [row.ber for row in forced.rows] == [row.ber for row in first.rows]
    assert [row.utility for row in forced.rows] == [row.utility for row in first.rows]


@pytest.mark.slow
@pytest.mark.quick
def test_a_service_keeps_its_weights_and_an_absorbed_model_shows_them(results, folder):  # noqa: F811
    closed = run.run(crude(results, folder, "attack=prune"))
    assert (closed.status, closed.rows[-1].status) == ("skipped", "skipped")
    assert "needs the weights, and boxfree's victim is a service" in closed.message
    x = run.prepare(crude(results, folder, "attack=prune", "method.absorbed=true", "attack.ratios=[0.0,0.99]"))
    assert branches.branch(run.skeleton(x)) is None
    rows = {(row.knob, row.strength): row for row in run.run(x.cfg).rows}
    assert rows["none", None].detected
    assert rows["ratio", 0.0].ber == rows["none", None].ber == 0
    assert not rows["ratio", 0.99].detected
    assert not rows["host", None].detected


@pytest.mark.slow
@pytest.mark.quick
def test_what_all_outputs_share_can_be_taken_from_them(results, folder):  # noqa: F811
    more = ("attack=residual", "attack.pairs=[8,400]", "attack.highpass=[400]")
    rows = run.run(crude(results, folder, *more)).rows
    made = [row for row in rows if row.knob in ("pairs", "highpass")]
    assert [row.strength for row in made] == [8, 400, 400]
    assert all(row.status == "ok" for row in made)
    changed = run.run(crude(results, folder, "attack=postprocess", "attack.noise=[0]", "attack.brightness=[-255]")).rows
    by = {(row.knob, row.strength): row for row in changed}
    assert by["noise", 0].ber == by["none", None].ber
    assert by["noise", 0].utility == by["none", None].utility
    assert not by["brightness", -255].detected


@pytest.mark.slow
@pytest.mark.quick
def test_a_logo_is_one_bit_with_a_null_of_its_own(results, folder):  # noqa: F811
    cfg = crude(results, folder, "method.payload=image", "attack=none", "verify.keys=50", "method.adversarial=false")
    first = run.run(cfg)
    host, victim, *clean = first.rows
    assert (host.n_bits, victim.n_bits) == (1, 1)
    assert victim.detected
    assert victim.ber == 0
    assert not any(row.detected for row in (host, *clean))
    assert first.controls is None
    x = run.prepare(cfg)
    key = load_key(run.mark(x).path / "key.safetensors")
    assert key.secret["null"][2] == x.task.view("owner").size("validation")


# What needs no training


def test_a_runs_command_composes_its_students(tmp_path):
    more = ("attack=surrogate", "model@attack.students.plain=unet", "attack.students.plain.depth=2")
    for words_ in ((), more, ("model@method.surrogate=dncnn8", "+model@attack.students.big=dncnn", "attack=surrogate")):
        was = OmegaConf.to_container(config("task=restoration", "method=boxfree", *words_), resolve=True)
        line = shlex.split(repeating(was, [0]))
        assert OmegaConf.to_container(config(*line[3:]), resolve=True) == was


def test_every_method_says_what_it_reads_and_is_released():
    assert Method.access == "weights"
    assert Method().released
    assert method("method.absorbed=true").released
    assert not method().released
    model = Changed(networks.build(spec.build(config("task=restoration").model, "model"), 0), lambda x: x + 1)
    images = torch.randint(0, 200, (2, 3, 32, 32)).float()
    with torch.no_grad():
        assert torch.equal(model(images), images + 1)


def test_a_clean_surrogate_that_verifies_fails_the_run():
    row = {"status": "ok", "knob": "clean/same/l2", "detected": True, "claim_detected": None}
    assert metrics.verdict(row, "removal", 1.0) == "FALSE ALARM"
    assert metrics.verdict({**row, "detected": False}, "removal", 1.0) == "control"
    assert metrics.is_control("host")
    assert not metrics.is_control("none")
    assert not metrics.is_control("cleaning")
