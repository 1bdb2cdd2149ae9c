"""What a network is trained in: asked once, kept, part of every address."""

from __future__ import annotations

import pytest
import torch

from bench import precision, run, stages
from bench.errors import ConfigError
from bench.models import anatomy
from bench.store.keys import load_key
from bench.train import last_layout
from tests.helpers import MARKING, first, tiny


@pytest.fixture
def timed(monkeypatch):
    """bfloat16 is had, every training is long enough, and the steps take what the test says; counts what is asked."""
    took, asked = {"float32": 1.0, "bfloat16": 0.5}, []
    monkeypatch.setattr(precision, "hardware", lambda: ["amx"])
    monkeypatch.setattr(precision, "LARGE", 0)
    monkeypatch.setattr(precision, "seconds", lambda *args: asked.append(args[-1]) or took[args[-1]])
    return took, asked


def chosen(folder, *more: str) -> str:
    return run.prepare(tiny(folder, "none", "none", *more)).train.precision


def test_a_quicker_precision_is_taken_and_found_again(timed, tmp_path):
    took, asked = timed
    assert chosen(tmp_path) == "bfloat16"
    took["bfloat16"] = 2.0  # another moment, another figure: the sweep goes on as it began
    assert chosen(tmp_path, "seed=1", "train.epochs=9", "data.train_limit=500") == "bfloat16"
    assert asked == ["float32", "bfloat16"]
    assert chosen(tmp_path, "train.batch_size=32") == "float32"  # at this batch it is asked anew


@pytest.mark.parametrize(("half", "found"), [(0.95, "float32"), (1 / 1.11, "bfloat16"), (1.5, "float32")])
def test_a_tenth_is_asked(timed, tmp_path, half, found):
    timed[0]["bfloat16"] = half
    assert chosen(tmp_path) == found


def test_short_trainings_and_other_processors_stay_with_float32(timed, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "LARGE", 1e12)
    assert chosen(tmp_path) == "float32"
    monkeypatch.setattr(precision, "LARGE", 0)
    monkeypatch.setattr(precision, "hardware", list)
    assert chosen(tmp_path) == "float32"
    assert timed[1] == []


def test_the_precision_is_part_of_the_address(tmp_path):
    words = [tiny(tmp_path, "uchida", "none", f"train.precision={p}") for p in ("float32", "bfloat16")]
    a, b = (run.prepare(cfg) for cfg in words)
    assert a.run_id != b.run_id
    assert a.host_identity != b.host_identity


def test_bfloat16_that_cannot_be_had_is_one_line(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise RuntimeError("no kernel\nand more")

    monkeypatch.setattr(torch, "autocast", refuse)
    with pytest.raises(ConfigError, match=r"^train.precision=bfloat16: torch cannot on cpu \(no kernel\); set float32"):
        chosen(tmp_path, "train.precision=bfloat16")


def test_the_probe_trains_in_what_it_names(tmp_path):
    x = run.prepare(tiny(tmp_path, "none", "none", "train.batch_size=8"))
    assert all(precision.seconds(x.train, x.model, x.task, name) > 0 for name in ("float32", "bfloat16"))


def test_multiplications_are_counted():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, groups=1), torch.nn.Flatten(), torch.nn.Linear(32, 5))
    assert anatomy.work(net, torch.zeros(1, 3, 4, 4)) == 8 * 4 * 27 + 5 * 32


def test_layout_between_epochs_is_as_it_was(results):
    x = run.prepare(tiny(results, "none", "none", "train.precision=bfloat16"))
    net = stages.fresh(x)
    assert last_layout(net, x.train, x.device)
    seen = []

    def penalty(model):
        seen.append(model.layer4[0].conv1.weight.is_contiguous(memory_format=torch.channels_last))
        return 0.0

    for _ in stages.owner_fit(x).epochs(net, x.task.view("owner"), penalty=penalty, epochs=1):
        assert all(p.is_contiguous() for p in net.parameters())
    assert seen
    assert all(seen)


@pytest.mark.parametrize("method", first(MARKING))
def test_marks_are_embedded_in_bfloat16(results, method):
    """The same bits as in float32, read in float32, by a margin as wide."""
    weakest = {}
    for name in ("float32", "bfloat16"):
        x = run.prepare(tiny(results, method, "none", f"train.precision={name}"))
        entry = stages.mark(x)
        assert entry["ber"] == 0, name
        weakest[name] = entry["weakest"]
        key = load_key(entry.path / "key.safetensors")
        read = x.method.extract(stages.load_weights(stages.skeleton(x), entry.path), key, x.task)
        assert read.dtype == torch.float32
    assert weakest["bfloat16"] > 0.5 + 0.7 * (weakest["float32"] - 0.5)
