"""Box-free marks: barrier, extractor, nulls; surrogates, changed outputs; what the judge does with them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from attacks.postprocess import Changed
from bench import branches, metrics, networks, outputs, run, spec, store
from bench.keys import load_key
from bench.types import Key, Method, Victim
from methods import boxfree
from methods.barrier import BLANK, Barrier, Discriminator, Extractor, stretched
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


# Networks


def test_an_untrained_barrier_changes_no_pixel_and_an_untrained_extractor_finds_nothing():
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 32, 32)).float()
    barrier = Barrier(8, 3, 8).eval()
    assert torch.equal(barrier(pictures), torch.zeros_like(pictures))
    with torch.no_grad():
        barrier.unet.head.weight.normal_()
        assert barrier(pictures).abs().max() > 0
    m = method()
    key = key_of(m)
    assert torch.equal(m.soft(m.read(pictures, key), key), torch.full((64,), 0.5))


def test_a_mark_is_stretched_to_squares_of_the_picture():
    marks = torch.randint(0, 2, (2, 1, 4, 4)).float()
    big = stretched(marks, torch.zeros(2, 3, 12, 12))
    assert torch.equal(big[:, :, 1::3, 1::3], marks)
    assert torch.equal(nn.functional.adaptive_avg_pool2d(big, 4), marks)


def test_a_discriminators_two_losses_move_one_side_each():
    torch.manual_seed(1)
    judge, real = Discriminator(), torch.rand(4, 3, 16, 16) * 255
    made = (torch.rand(4, 3, 16, 16) * 255).requires_grad_()
    told, lost = judge.losses(real, made)
    told.backward(retain_graph=True)
    assert made.grad is None
    assert all(p.grad is not None for p in judge.parameters())
    judge.zero_grad(set_to_none=True)
    lost.backward()
    assert made.grad is not None
    assert all(p.grad is None for p in judge.parameters())


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


# Verdicts


@settings(deadline=None, max_examples=30)
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
        sample = 0.1 * rng.standard_normal(21)
        null = torch.tensor([sample[:20].mean(), sample[:20].std(ddof=1), 20.0])
        guess = replace(key, secret=key.secret | {"null": null})
        p = m.evidence(torch.tensor([(1 + sample[20]) / 2]), guess)[1]
        for level in rate:
            rate[level] += p <= math.log10(level)
    assert rate[0.05] / 4000 == pytest.approx(0.05, abs=0.015)
    assert rate[0.5] / 4000 == pytest.approx(0.5, abs=0.04)
    sure = replace(key, secret=key.secret | {"null": torch.tensor([0.0, 0.1, 250.0])})
    assert m.evidence(torch.tensor([0.99]), sure)[1] < -9
    assert m.evidence(torch.tensor([0.5]), sure)[1] == pytest.approx(math.log10(0.5), abs=1e-6)


def test_a_logo_may_be_a_file(tmp_path):
    ours = boxfree.drawn(None)
    assert ours.shape == (1, 32, 32)
    assert 0.1 < ours.mean() < 0.6
    Image.fromarray((255 * ours[0].numpy()).astype(np.uint8)).resize((96, 96)).save(tmp_path / "logo.png")
    assert (boxfree.drawn(str(tmp_path / "logo.png")) - ours).abs().mean() < 0.15


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


# What is done to outputs


def test_changes_of_outputs_are_what_they_are_called():
    torch.manual_seed(0)
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 255, (32, 32), mode="bicubic").clamp(0, 255)
    pictures = pictures.round()
    for kind, none in (("noise", 0), ("blur", 0), ("resize", 1), ("shift", 0), ("brightness", 0)):
        assert torch.equal(outputs.processed(pictures, kind, none, 0), pictures), kind
    assert torch.equal(outputs.processed(pictures, "none", 3, 0), pictures)
    noisy = outputs.processed(torch.full((8, 3, 32, 32), 128.0), "noise", 5, 7)
    assert float(noisy.std()) == pytest.approx(5, rel=0.05)
    assert torch.equal(noisy, outputs.processed(torch.full((8, 3, 32, 32), 128.0), "noise", 5, 7))
    assert not torch.equal(noisy, outputs.processed(torch.full((8, 3, 32, 32), 128.0), "noise", 5, 8))
    moved = outputs.processed(pictures, "shift", 2, 0)
    assert torch.equal(moved[..., 2:], pictures[..., :-2])
    assert torch.equal(moved[..., 0], pictures[..., 0])
    errors = [(outputs.processed(pictures, "jpeg", q, 0) - pictures).square().mean() for q in (95, 50, 10)]
    assert errors[0] < errors[1] < errors[2] < 300
    for kind, strength in (("jpeg", 75), ("noise", 9), ("blur", 1), ("resize", 0.5), ("brightness", 200)):
        changed = outputs.processed(pictures, kind, strength, 0)
        assert changed.shape == pictures.shape
        assert torch.equal(changed, changed.round().clamp(0, 255))
        assert not torch.equal(changed, pictures)


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_both_pictures_of_a_pair_are_augmented_alike(augment):
    attack = spec.build(config("task=restoration", "attack=surrogate", f"attack.augment={augment}").attack, "attack")
    torch.manual_seed(3)
    images = torch.rand(16, 3, 24, 24)
    one, two = attack._augmented(images, 1 - images)
    assert torch.equal(one, 1 - two)
    assert torch.equal(one, images) is (augment == "none")
    assert one.shape == images.shape
    if augment == "flip":
        kept = (one == images).flatten(1).all(1)
        assert 0 < int(kept.sum()) < 16
        assert torch.equal(one[~kept], images[~kept].flip(3))


@pytest.mark.parametrize("loss", ["l2", "l1", "gan", "perceptual"])
def test_surrogates_losses_fall_towards_the_target(loss):
    attack = spec.build(config("task=restoration", "attack=surrogate").attack, "attack")
    torch.manual_seed(0)
    wanted = torch.rand(2, 3, 16, 16) * 255
    distance, more = attack._distance(loss, 5, wanted)
    for p in (p for net in more for p in net.parameters()):
        p.data.zero_()  # a discriminator without an opinion
    far, near = (distance(wanted + much * torch.randn_like(wanted), wanted).item() for much in (40, 1))
    assert near < far
    assert len(more) == (loss == "gan")
    if loss == "perceptual":
        assert float(distance(wanted, wanted)) == 0
        again, _ = attack._distance(loss, 5, wanted)
        assert float(again(wanted + 3, wanted)) == float(distance(wanted + 3, wanted))


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
def test_surrogates_rows_controls_and_figure(results, folder, tmp_path):  # noqa: F811
    cfg = crude(results, folder, *QUICK, "method.adversarial=false")
    first = run.run(cfg)
    knobs = [row.knob for row in first.rows]
    assert knobs == ["host", "none", "clean/inputs", "clean/truth", "same/l2", "plain/l1", "clean/same/l2"]
    by = {row.knob: row for row in first.rows}
    assert by["same/l2"].detected
    assert not any(row.detected for row in first.rows if metrics.is_control(row.knob))
    assert by["same/l2"].utility < by["none"].utility + 1
    assert first.controls["random_keys"] == 200
    assert first.controls["false_positives"] == 0
    assert [line["knob"] for line in first.outputs] == [k for k in knobs if k not in ("clean/inputs", "clean/truth")]
    assert first.outputs[0]["psnr_to_unmarked"] == 100
    assert 30 < first.outputs[1]["psnr_to_unmarked"] < 60
    with Image.open(first.figure) as image:
        assert image.size[0] > 800
        assert len(set(image.convert("L").getdata())) > 50
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
    assert first.controls["false_positives"] == 0
    x = run.prepare(cfg)
    key = load_key(run.mark(x).path / "key.safetensors")
    assert key.secret["null"][2] == x.task.view("owner").size("validation")


# What needs no training


def test_a_trace_that_is_the_same_everywhere_is_subtracted_exactly(folder, results):  # noqa: F811
    attack = spec.build(config("task=restoration", "attack=residual", "attack.pairs=[8]").attack, "attack")
    x = run.prepare(crude(results, folder, "attack=residual", "task.sigma=0"))
    trace = torch.zeros(3, 16, 16)
    trace[:, 4:8, 4:8] = 9

    class Marked(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.input_mean = model, model.input_mean

        def forward(self, images):
            return self.model(images) + trace

    clean = run.fresh(x)  # what it takes, it gives; nothing is degraded
    victim = Victim(Marked(clean), x.method, x.task.view("attacker"))
    snapshot = next(attack.run(victim, np.random.default_rng(0), None))
    images = torch.randint(20, 230, (4, 3, 16, 16)).float()
    # Pixels near white saturate: what they show of the trace is less.
    assert (snapshot.model(images) - clean(images)).abs().mean() < 1
    assert (victim.model(images) - clean(images)).abs().mean() > 0.5


@pytest.mark.parametrize("attack", ["postprocess", "residual"])
def test_no_change_of_outputs_touches_what_is_read_from_weights(folder, results, attack):  # noqa: F811
    x = run.prepare(config(*words(folder), "method=uchida", f"attack={attack}", f"results_dir={results}"))
    victim = Victim(run.fresh(x), x.method, x.task.view("attacker"))
    assert x.attack.skip(victim) == "the mark is read from weights, which no change of outputs touches"


def test_attacks_on_outputs_state_that_they_need_no_weights():
    for name in ("surrogate", "postprocess", "residual", "distill"):
        attack = spec.build(config("task=restoration", f"attack={name}").attack, "attack")
        assert attack.needs == ("outputs",)
        assert attack.knows == ["outputs"]
    twin = spec.build(config("task=restoration", "attack=surrogate").attack, "attack").twin
    assert twin.surrogates == ["same/l2"]
    assert twin.twin is None


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
