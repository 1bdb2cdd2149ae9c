"""task=restoration on the command line: what it brings along, what composes again, what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import run, spec
from bench.errors import ConfigError
from tests.helpers import config, restoration

OTHERS = ("task=classification", "model=resnet18", "model=unet", "data=digits", "data=skimage")


def test_the_task_brings_its_data_model_schedule_and_limit_and_explicit_choices_win():
    cfg = config("task=restoration")
    assert (cfg.data.label, cfg.model.name, cfg.train.batch_size) == ("skimage", "unet", 16)
    own = config("task=restoration", "data=digits", "model=dncnn", "train=default", "verify.max_damage=3")
    assert (own.data.label, own.model.name, own.train.batch_size, own.verify.max_damage) == ("digits", "dncnn", 64, 3.0)
    assert config("task=restoration", "attack=distill").attack.student.name == "dncnn"
    usual = config()
    assert (usual.data.label, usual.model.label) == ("digits", "resnet18")
    assert config("attack=distill").attack.student.label == "mobilenetv3_small"


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (["task=restoration", "data=digits"], 1.0),
        (["task=restoration", "data=digits", "task.metric=ssim"], 0.02),
        (["task=restoration", "data=digits", "verify.max_damage=3"], 3.0),
        (["task.max_damage=7"], 7.0),
        ([], 5.0),
    ],
)
def test_what_a_success_may_cost_is_the_tasks_own_number_unless_somebody_chose(words, limit, results):
    cfg = config(*words, f"results_dir={results}", "device=cpu")
    x = run.prepare(cfg)
    assert x.verify.max_damage == limit
    assert cfg.verify.max_damage == limit  # what run files record and tables judge by


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["model=resnet18"], "model resnet18 gives no images: task=restoration takes model=unet, dncnn, resnet_ir"),
        (["task=classification", "data=digits", "model=unet"], "it is for task=restoration, not classification"),
        (["task=classification", "data=skimage", "model=resnet18"], "data=skimage has no labels"),
        (["task.degradation=blur"], "task.degradation=blur: not known"),
        (["task.metric=lpips"], "task.metric=lpips: not known; valid: psnr, ssim"),
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
def test_one_line_says_what_cannot_be(capsys, monkeypatch, tmp_path, picture_folder, more, expected):
    from bench.cli import usage

    monkeypatch.setattr("bench.train.Fit.epochs", lambda *a, **k: iter(()))
    gone = tuple(f"{w.split('=')[0]}." for w in more if w in OTHERS)  # options of what is not chosen now
    kept = [w for w in restoration(picture_folder) if not w.startswith(gone)] if gone else restoration(picture_folder)
    line = [*kept, "method=none", "attack=none", f"results_dir={tmp_path}", *more]
    said = usage.problem(line)
    if not said:
        outcome = run.job(config(*line))
        assert (outcome.status, outcome.code) == ("failed", 2), outcome.message
        said = outcome.message
    assert expected in said
    assert "\n" not in said


def test_there_is_no_head_to_exchange(opened):
    net = opened.build(spec.build(config(*restoration(Path("."))).model, "model"), 0)
    assert opened.head(net) is None
    for asked in (lambda: opened.transfer({}), lambda: opened.adopt(net, opened, 0)):
        with pytest.raises(ConfigError, match="task=restoration: there are no other classes to move to"):
            asked()
