"""Segmentation: loss, utility, prior, and what is refused in one line."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench import run, spec, stages, threat
from bench.data.masks import VOID
from bench.errors import ConfigError
from bench.tasks.segmentation import Prior, Segmentation, painted
from tests.helpers import config, segmentation, segmentation_task


class Says(nn.Module):
    """A network that gives the same logits [C, H, W] for every picture, or a function of them."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits(images) if callable(self.logits) else self.logits.expand(len(images), *self.logits.shape)


def told(masks: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits [N, C, H, W] of a network that is sure of these masks."""
    return 10.0 * functional.one_hot(masks.long(), classes).permute(0, 3, 1, 2)


@pytest.fixture
def opened(results):
    return segmentation_task(results)


def with_masks(task, masks: torch.Tensor, monkeypatch):
    """The task with these masks [N, H, W] for its first pictures, in every split."""
    pictures = torch.zeros(len(masks), 3, *masks.shape[1:], dtype=torch.uint8)
    monkeypatch.setattr(type(task), "tensors", lambda self, split: (pictures, masks, torch.arange(len(masks))))
    return task


# Utility


def test_miou_is_the_mean_over_classes_that_are_there_and_void_counts_for_nothing(opened, monkeypatch):
    truth = torch.full((1, 4, 4), VOID, dtype=torch.uint8)
    truth[0, 0] = 0  # four pixels of each
    truth[0, 1] = 1
    given = torch.zeros_like(truth)
    given[0, 1, :2] = 1
    given[0, 1, 2] = 2  # a class that no mask has
    task = with_masks(opened, truth, monkeypatch)
    scores = task.scores(Says(told(given, 11)[0]))
    # class 0: 4 right, union 4 + 1; class 1: 2 right, union 4
    assert scores["miou"] == pytest.approx(100 * (4 / 5 + 2 / 4) / 2)
    assert scores["pixels"] == pytest.approx(100 * 6 / 8)
    assert task.utility(Says(told(given, 11)[0])) == scores["miou"]
    by_pixels = replace(task, config=replace(task.config, metric="pixels"))
    assert (by_pixels.utility(Says(told(given, 11)[0])), by_pixels.utility_name) == (scores["pixels"], "pixels")
    given[truth == VOID] = 5  # whatever is said there
    assert task.scores(Says(told(given, 11)[0])) == scores


def test_outputs_that_are_no_numbers_are_wrong(opened, monkeypatch):
    truth = torch.zeros(2, 4, 4, dtype=torch.uint8)
    truth[:, 2:] = 1
    task, right = with_masks(opened, truth, monkeypatch), told(truth, 11)[0].float()
    assert task.utility(Says(right)) == 100
    assert task.utility(Says(torch.full_like(right, math.nan))) == 0
    right[7, 2:] = math.inf  # of one class is enough
    assert task.utility(Says(right)) == 50


def test_the_score_is_that_of_the_masks_own_resolution(results):
    """The same network scores otherwise on coarser masks: which they are belongs to the number."""
    fine, coarse = (segmentation_task(results, f"data.image_size={n}", "data.seed=3") for n in (32, 16))
    assert fine.identity != coarse.identity
    blind = Says(lambda images: torch.zeros(len(images), 11, *images.shape[2:]))
    assert fine.scores(blind)["pixels"] != coarse.scores(blind)["pixels"]
    model = spec.build(config(*segmentation()).model, "model")
    for task in (fine, coarse):
        assert task.build(model, 0).eval()(task.example(1)).shape[2:] == task.signature.sides


def test_batches_of_any_size_score_alike(results, opened):
    net = opened.build(spec.build(config(*segmentation()).model, "model"), 0)
    other = segmentation_task(results, "task.eval_batch=7")
    assert opened.scores(net) == other.scores(net)


def test_the_prior_is_the_most_frequent_class_at_each_position(opened):
    _, masks, index = opened.tensors("owner")
    prior = Prior(opened)(opened.example(1)).argmax(1)[0]
    assert torch.equal(prior.byte(), masks[index].flatten(1).mode(0).values.view(prior.shape))
    assert 0 < opened.utility(Prior(opened)) < 15  # background alone is right for a good part


def test_a_host_is_one_that_beats_the_guess_by_position_on_most_pictures(opened):
    index = opened.index["test"]
    sure = {p.numpy().tobytes(): told(m[None], 11)[0].float() for p, m in zip(*_test_pairs(opened), strict=True)}

    class Knows(nn.Module):
        def forward(self, images):
            return torch.stack([sure[picture.numpy().tobytes()] for picture in images])

    n, prior = len(index), Prior(opened)
    log10_p, half = opened.confidence(Knows(), Knows(), 100.0, 100.0)
    assert (log10_p, half) == (pytest.approx(-n * math.log10(2)), 0)
    log10_p, half = opened.confidence(prior, Knows(), opened.utility(prior), 100.0)
    assert log10_p == pytest.approx(0, abs=1e-9)
    # The jackknife of mean IoU by hand: the score without each picture, from its own confusion matrix.
    each = []
    for i in range(n):
        rest = replace(opened, index={**opened.index, "test": torch.cat([index[:i], index[i + 1 :]])})
        each.append(rest.utility(Knows()) - rest.utility(prior))
    spread = torch.tensor(each, dtype=torch.float64)
    by_hand = 1.959964 * math.sqrt((n - 1) / n * float((spread - spread.mean()).square().sum()))
    assert half == pytest.approx(by_hand, rel=1e-4)


def _test_pairs(task):
    return [torch.cat(parts) for parts in zip(*task.batches("test", 64), strict=True)]


# Losses


def test_class_weights_are_the_root_of_the_shares_and_have_mean_one(opened, monkeypatch):
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    masks[0, 0] = 1  # 10 of 80
    masks[0, 9], masks[0, 8] = VOID, VOID
    task = with_masks(opened, masks, monkeypatch)
    first, second = (7 / 8) ** -0.5, (1 / 8) ** -0.5
    assert task.weights[:2].tolist() == pytest.approx([2 * first / (first + second), 2 * second / (first + second)])
    assert task.weights[2:].tolist() == [1.0] * 9  # of classes that nobody has seen
    plain = replace(task, config=replace(task.config, class_weights="none"))
    assert plain.weights.tolist() == [1.0] * 11


def test_each_role_weighs_by_its_own_masks(opened):
    owner, attacker = opened.view("owner"), opened.view("attacker")
    assert torch.equal(opened.weights, owner.weights)
    assert not torch.equal(owner.weights, attacker.weights)
    with pytest.raises(PermissionError):
        _ = opened.view("outsider").weights


def test_the_loss_is_torchs_weighted_cross_entropy_and_0_where_all_is_void(opened):
    task = opened.view("owner")
    images, masks = next(task.batches("owner", 8, 0))
    masks = masks.clone()
    masks[:, :5] = VOID
    logits = torch.randn(8, 11, *masks.shape[1:], generator=torch.Generator().manual_seed(0))
    net = Says(lambda images: logits)
    for one, smoothing in ((task, 0.0), (task.smoothed(0.2), 0.2)):
        expected = nn.CrossEntropyLoss(task.weights, ignore_index=VOID, label_smoothing=smoothing)(logits, masks.long())
        assert one.loss(net, (images, masks)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert task.loss(net, (images, torch.full_like(masks, VOID))).item() == 0


def test_distillation_reads_no_mask_and_divergence_is_per_pixel(opened):
    images, masks = next(opened.batches("owner", 8))
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(8, 11, *masks.shape[1:], generator=draws) for _ in range(2))
    net, teacher = Says(lambda images: a), Says(lambda images: b)
    found = opened.distill(net, teacher, (images, None))
    assert found.item() == pytest.approx(-(b.softmax(1) * a.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    kl = (a.softmax(1) * (a.log_softmax(1) - b.log_softmax(1))).sum(1).mean()
    assert opened.divergence(a, b).item() == pytest.approx(kl.item(), rel=1e-5)
    assert opened.divergence(a, a + 3).item() == pytest.approx(0, abs=1e-6)


def test_a_batch_of_one_never_trains(results):
    """A pooling branch has one value a channel then, which batch normalisation refuses."""
    task = segmentation_task(results, "data.train_limit=80", "data.block=16", "data.validation=0").view("owner")
    assert [len(images) for images, _ in task.batches("owner", task.size("owner") - 1, 0)] == [task.size("owner") - 1]
    with pytest.raises(ConfigError, match="the attacker split has one picture, and a batch needs two"):
        segmentation_task(results, "data.block=1", "data.attacker=0.09", "data.validation=0")


# What an attacker is handed


def test_a_service_answers_for_each_pixel_with_logits_or_the_class_alone(results):
    words = ["method=none", f"results_dir={results}", "train.epochs=1", "attack.knows=[outputs]"]
    x = run.prepare(config(*segmentation(), *words, "attack=distill"))
    net, images = stages.fresh(x).eval(), x.task.example(2)
    told = threat.stolen(x, net, None).model(images)
    assert torch.equal(told, net(images))
    x = run.prepare(config(*segmentation(), *words[:-1], "attack=extract"))
    named = threat.stolen(x, net, None).model
    assert torch.equal(named(images), told.argmax(1))
    with pytest.raises(PermissionError):
        named.parameters()


# A run's figure


def test_what_the_figure_shows(opened):
    columns = opened.examples()
    assert list(columns) == ["picture", "truth"]
    said, given = opened.shows(Prior(opened))
    assert said.endswith("% of these pixels")
    assert len(given) == len(columns["picture"]) == len(columns["truth"]) == 3
    assert all(x.shape == (3, 32, 32) and x.dtype == torch.uint8 for x in (*columns["picture"], *given))
    colours = painted(torch.tensor([[[0, 1, VOID]]], dtype=torch.uint8), 11)[0, :, 0].T.tolist()
    assert len(set(map(tuple, colours))) == 3
    assert colours[2] == [0, 0, 0]


# On the command line


def test_the_task_brings_its_data_model_schedule_and_limit():
    cfg = config("task=segmentation", "attack=distill")
    assert (cfg.data.label, cfg.model.label, cfg.train.batch_size) == ("scenes", "deeplabv3_resnet10t", 16)
    assert cfg.attack.student.label == "unet_tiny"
    own = config("task=segmentation", "model=unet_tiny", "data=voc", "train=default")
    assert (own.data.label, own.model.label, own.train.batch_size) == ("voc", "unet_tiny", 64)
    assert set(cfg.task) - {"_target_"} == set(Segmentation.__dataclass_fields__)


@pytest.mark.parametrize(("metric", "limit"), [("miou", 5.0), ("pixels", 4.0)])
def test_what_a_success_may_cost_is_the_metrics_own_number(results, metric, limit):
    cfg = config(*segmentation(f"task.metric={metric}", "task.max_damage.pixels=4", f"results_dir={results}"))
    assert run.prepare(cfg).verify.max_damage == limit


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["task=segmentation", "model=resnet18"], "model resnet18 gives no class for each pixel: task=segmentation"),
        (["task=segmentation", "model=unet"], "model unet gives no class for each pixel: task=segmentation takes"),
        (["task=segmentation", "data=digits"], "data=digits has no masks: task=segmentation takes data=scenes"),
        (["task=segmentation", "data=skimage"], "data=skimage has no masks"),
        (["data=scenes"], "data=scenes has masks, not labels: it is for task=segmentation"),
        (["task=restoration", "data=scenes"], "data=scenes has masks, not labels: it is for task=segmentation"),
        (["model=unet_tiny"], "model unet_tiny gives maps: it is for task=segmentation, not classification"),
        (["task=restoration", "model=unet_tiny"], "model unet_tiny gives no images: task=restoration takes"),
        (["task=segmentation", "task.metric=dice"], "task.metric=dice: not known; valid: miou, pixels"),
        (["task=segmentation", "task.class_weights=log"], "task.class_weights=log: not known"),
        (["task=segmentation", "attack=finetune", "data@attack.transfer=voc"], "there are no other classes to move to"),
        (["task=segmentation", "attack=distill", "model@attack.student=resnet34"], "gives no class for each pixel"),
        (["task=segmentation", "data.image_size=4"], "data.image_size=4: must be from 8 to 4096"),
        (["task=segmentation", "data.block=0"], "data.block=0: must be at least 1"),
        (["task=segmentation", "data=camvid", "data.path=no/where"], "data.path=no/where: no such folder"),
        (["task=segmentation", "data=camvid"], "data.path has no value: give data.path=..."),
        (["task=segmentation", "data=cityscapes", "data.path=no/where"], "data.path=no/where: no such folder"),
        (["task=segmentation", "data=voc", "data.path=no/where"], "data.path=no/where holds no VOCdevkit/VOC2012"),
        (["task=segmentation", "method=boxfree"], "method=boxfree marks pictures: task=restoration"),
    ],
)
def test_one_line_says_what_cannot_be(monkeypatch, tmp_path, words, expected):
    from bench.cli import usage

    monkeypatch.setattr("bench.train.Fit.epochs", lambda *a, **k: iter(()))
    line = ["method=none", "attack=none", f"results_dir={tmp_path}", "device=cpu", *words]
    groups = {word.split("=")[0] for word in words}
    line = [word for word in line[:2] if word.split("=")[0] not in groups] + line[2:]
    small = [f"data.{k}" for k in ("block=16", "tests=8") if not any(w.startswith(("data=", "data.")) for w in words)]
    line += small if "task=segmentation" in words else []
    said = usage.problem(line)
    if not said:
        outcome = run.job(config(*line))
        assert (outcome.status, outcome.code) == ("failed", 2), outcome.message
        said = outcome.message
    assert expected in said
    assert "\n" not in said


@pytest.mark.parametrize("mode", ["ftll", "rtal", "rtll"])
def test_other_heads_are_refused_in_one_line(results, mode):
    words = ["method=none", "attack=finetune", f"attack.mode={mode}", f"results_dir={results}", "train.epochs=1"]
    outcome = run.run(config(*segmentation(), *words))
    assert outcome.status == "skipped"
    assert "task=segmentation: the network has no classifier to train alone" in outcome.message
