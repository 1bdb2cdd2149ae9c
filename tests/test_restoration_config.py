"""task=restoration on the command line: what it brings along, what composes again, what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import run, spec
from bench.command import command as repeating
from bench.types import ConfigError
from tests.conftest import config
from tests.test_restoration import folder, opened, words  # noqa: F401 (fixtures)

OTHERS = ("task=classification", "model=resnet18", "model=unet", "data=digits", "data=skimage")


def test_the_task_brings_its_data_model_schedule_and_limit_and_explicit_choices_win():
    cfg = config("task=restoration")
    assert (cfg.data.label, cfg.model.name, cfg.train.batch_size, cfg.verify.max_damage) == ("skimage", "unet", 16, 1.0)
    own = config("task=restoration", "data=digits", "model=dncnn", "train=default", "verify.max_damage=3")
    assert (own.data.label, own.model.name, own.train.batch_size, own.verify.max_damage) == ("digits", "dncnn", 64, 3.0)
    assert config("task=restoration", "task.metric=ssim").verify.max_damage == 0.02
    assert config("task=restoration", "attack=distill").attack.student.name == "dncnn"
    usual = config()
    assert (usual.data.label, usual.model.label, usual.verify.max_damage) == ("digits", "resnet18", 5.0)
    assert config("attack=distill").attack.student.label == "mobilenetv3_small"


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("attack=distill",),
        ("attack=distill", "model@attack.student=unet"),
        ("train=default", "task.metric=ssim"),
        ("verify.max_damage=5", "task.degradation=rain", "task.tilt=10"),
        ("data=parquet", "data.path=x", "model=resnet_ir", "train.epochs=3"),
    ],
)
def test_a_runs_command_composes_its_configuration(more):
    was = OmegaConf.to_container(config("task=restoration", *more), resolve=True)
    line = repeating(was, [0])
    assert "verify.max_damage" not in line or "verify.max_damage=5" in more
    now = OmegaConf.to_container(config(*line.split()[3:]), resolve=True)
    assert now == was


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["model=resnet18"], "model resnet18 gives no images: task=restoration takes model=unet, dncnn, resnet_ir"),
        (["task=classification", "data=digits", "model=unet"], "it is for task=restoration, not classification"),
        (["task=classification", "data=skimage", "model=resnet18"], "data=skimage has no labels"),
        (["task.degradation=blur"], "task.degradation=blur: not known"),
        (["task.metric=lpips"], "'task.max_damage.lpips' not found"),
        (["task.loss=l3"], "task.loss=l3: not known"),
        (["task.sigma=-1"], "task.sigma=-1.0: must be from 0 to 255"),
        (["task.quality=100"], "task.quality=100: must be from 1 to 95"),
        (["task.patch=8"], "task.patch=8: must be at least 16"),
        (["task.patch=48", "model=unet", "model.depth=5"], "task.patch=48: unet takes multiples of 32"),
        (["task.patch=128"], "no picture of small holds a patch: set task.patch=64 or less"),
        (["model.name=srcnn"], "model.name=srcnn: not known"),
        (["model.name=dncnn"], "model.depth=2: must be at least 3"),
        (["model.checkpoint=no/where"], "model.checkpoint=no/where: no such file"),
        (["attack=finetune", "data@attack.transfer=cifar100"], "task=restoration: there are no other classes"),
        (["attack=distill", "model@attack.student=resnet34"], "model resnet34 gives no images"),
        (["data.path=no/where"], "data.path=no/where: no such folder"),
        (["data=digits", "data.flip=maybe"], "data.flip"),
    ],
)
def test_one_line_says_what_cannot_be(capsys, monkeypatch, tmp_path, folder, more, expected):  # noqa: F811
    from bench import usage

    monkeypatch.setattr("bench.train.Fit.epochs", lambda *a, **k: iter(()))
    gone = tuple(f"{w.split('=')[0]}." for w in more if w in OTHERS)  # options of what is not chosen now
    kept = [w for w in words(folder) if not w.startswith(gone)] if gone else words(folder)
    line = [*kept, "method=none", "attack=none", f"results_dir={tmp_path}", *more]
    said = usage.problem(line)
    if not said:
        outcome = run.job(config(*line))
        assert (outcome.status, outcome.code) == ("failed", 2), outcome.message
        said = outcome.message
    assert expected in said
    assert "\n" not in said


def test_there_is_no_head_to_exchange(opened):  # noqa: F811
    net = opened.build(spec.build(config(*words(Path("."))).model, "model"), 0)
    for asked in (lambda: opened.head(net), lambda: opened.new_head(net, 0), lambda: opened.adopt(net, opened, 0)):
        with pytest.raises(ConfigError, match="task=restoration: "):
            asked()
