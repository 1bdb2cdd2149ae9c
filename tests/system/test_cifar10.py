"""Real CIFAR-10 in the Hugging Face layout: `pytest -m slow`; CI runs the half marked quick."""

from __future__ import annotations

import pytest

from bench import run, spec
from bench.data.images import open_images
from tests.helpers import CIFAR10, REAL, config, load_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"no CIFAR-10 in {CIFAR10}: set BENCH_CIFAR10"),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return tmp_path_factory.mktemp("cifar10")


@pytest.mark.quick
def test_all_sixty_thousand_images_are_read(real):
    images = open_images(spec.build(config(*REAL).data, "data"), real / "cache")
    assert (images.entry["train"], images.entry["test"], images.entry["image_size"]) == (50_000, 10_000, 32)
    assert images.entry["classes"][:2] == ["airplane", "automobile"]
    assert load_tensors(images.entry.path)["train_labels"].bincount().tolist() == [5000] * 10
    assert load_tensors(images.entry.path)["test_labels"].bincount().tolist() == [1000] * 10
    # The published statistics of CIFAR-10, in pixel units; the files are re-encoded as JPEG.
    assert images.entry["mean"] == pytest.approx([125.3, 123.0, 113.9], abs=0.5)
    assert images.entry["std"] == pytest.approx([63.0, 62.1, 66.7], abs=1.0)


@pytest.mark.quick
@pytest.mark.parametrize("method", ["uchida", "neuralmark", "frequency", "watermas"])
def test_a_small_network_learns_and_carries_the_mark(real, method):
    words = [f"method={method}", "attack=prune", "model=timm", "model.name=test_resnet", f"results_dir={real}"]
    words += ["train.epochs=2", "data.test_limit=2000", "method.n_bits=64", "train.lr=0.003"]
    words += ["method.k=128"] if method == "neuralmark" else []
    rows = run.run(config(*words, *REAL)).rows
    host, victim = rows[:2]
    assert (host.data, host.knob, victim.knob) == ("cifar10", "host", "none")
    assert victim.ber == 0
    assert not host.detected
    assert host.utility > 35
    assert abs(host.utility - victim.utility) < 6


def test_resnet18_on_all_images(real):
    words = ["method=neuralmark", "attack=finetune", "model=resnet18", "train.epochs=2", f"results_dir={real}"]
    rows = run.run(config(*words, *REAL, "attack.epochs=2")).rows
    assert rows[1].ber == 0
    assert rows[1].utility > 50
    assert not rows[0].detected
    assert [r.strength for r in rows[2:]] == [1, 2]
