"""Box-free marks before any training: extractor, nulls, mistakes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from attacks._outputs import Changed
from bench import metrics, run, spec
from bench.errors import ConfigError
from bench.models.base import Signature
from bench.types import Key, Method
from methods import boxfree
from methods._barrier import BLANK, Extractor
from tests.helpers import CPU, config, restoration


def method(*more: str) -> boxfree.Boxfree:
    return spec.build(config("task=restoration", "method=boxfree", *more).method, "method")


def key_of(m: boxfree.Boxfree, seed: int = 0) -> Key:
    return m.keygen(nn.Identity(), np.random.default_rng(seed), None)


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
        (["method.presence=0.7"], "method.presence=0.7: must be in [0, 0.5)"),
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
def test_one_line_says_what_cannot_be(tmp_path, picture_folder, more, expected):
    outcome = run.job(
        config(*restoration(picture_folder), "method=boxfree", "attack=none", f"results_dir={tmp_path}", *more)
    )
    assert (outcome.status, outcome.code) == ("failed", 2), outcome.message
    assert expected in outcome.message


def test_classifiers_give_no_pictures(tmp_path):
    outcome = run.job(config("method=boxfree", "attack=none", f"results_dir={tmp_path}", "data.test_limit=50"))
    assert (outcome.code, outcome.message) == (2, "method=boxfree marks pictures: task=restoration")


def test_every_method_says_what_it_reads_and_is_released():
    assert Method.access == "weights"
    assert Method().released
    assert method("method.absorbed=true").released
    assert not method().released
    model = Changed(
        spec.build(config("task=restoration").model, "model").build(Signature(0, 32, (127.5,) * 3, (127.5,) * 3), 0),
        lambda x: x + 1,
    )
    images = torch.randint(0, 200, (2, 3, 32, 32)).float()
    with torch.no_grad():
        assert torch.equal(model(images), images + 1)
