"""model=cifarnet and train=fast: what of arXiv 2404.00498 holds exactly, and what it is refused for."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench import run, spec, stages
from bench.data import images
from bench.errors import ConfigError, UserError
from bench.models import base, cifarnet
from bench.train import _norm_biases as fast
from tests.helpers import build_attack, command, config, restoration, snapshots, tiny

NARROW = ("model=cifarnet", "model.widths=[24,32,32]", "data.flip=false")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    words = [*NARROW, "train=fast", "train.epochs=1", "train.batch_size=128"]
    return run.prepare(config("method=uchida", *words, "device=cpu", f"results_dir={tmp_path_factory.mktemp('c')}"))


@pytest.fixture
def net(experiment):
    return experiment.task.build(experiment.model, 0)


def test_the_papers_widths_give_the_papers_weights():
    covariance = torch.eye(12)
    model = spec.build(config("model=cifarnet").model, "model")
    whole = model.build(base.Signature(10, 32, (0.0,) * 3, (1.0,) * 3, lambda: covariance), 0)
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert sum(p.numel() for p in whole.parameters()) == convolutions + 2 * (64 + 256 + 256) + 2560
    assert sum(p.numel() for p in whole.parameters()) == pytest.approx(1.97e6, rel=0.01)


def test_patch_covariance_is_that_of_the_training_pixels(experiment):
    sets = experiment.task.images
    pixels, _, _ = experiment.task.tensors("owner")
    mean, std = (torch.tensor(sets.entry[name], dtype=torch.float64).view(3, 1, 1) for name in ("mean", "std"))
    total, count = torch.zeros(12, 12, dtype=torch.float64), 0
    for image in (pixels[:5000].double() - mean) / std:
        for top in range(image.shape[1] - 1):
            strip = torch.stack([image[:, top : top + 2, left : left + 2].flatten() for left in range(31)])
            total, count = total + strip.T @ strip, count + len(strip)
    assert torch.allclose(images.patch_covariance(sets), total / count, rtol=1e-6)


def test_filters_whiten_and_come_with_both_signs():
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    covariance = mixed @ mixed.T + torch.eye(12)
    filters = cifarnet.whitening(covariance).flatten(1).double()
    assert torch.equal(filters[:12], -filters[12:])
    white = filters[:12] @ covariance @ filters[:12].T
    assert torch.allclose(white, torch.eye(12, dtype=torch.float64), atol=1e-3)  # EPSILON: not quite unit variance
    # A direction without variance stays finite.
    assert cifarnet.whitening(torch.zeros(12, 12)).isfinite().all()


@pytest.mark.parametrize(("inside", "outside"), [(24, 64), (64, 64)])
def test_convolutions_begin_as_the_identity(inside, outside):
    x = torch.rand(2, inside, 5, 5)
    assert torch.allclose(cifarnet.identity(inside, outside)(x)[:, :inside], x, atol=1e-6)


def test_whitening_and_scales_stay_while_the_rest_trains(experiment, net):
    before = copy.deepcopy(net.state_dict())
    assert {name for name, _ in net.named_parameters() if "norm" in name} == {
        f"blocks.{block}.norm{norm}.bias" for block in range(3) for norm in (1, 2)
    }
    stages.owner_fit(experiment)(net, experiment.task.view("owner"))
    after = net.state_dict()
    fixed = [name for name in before if "whiten.weight" in name or name.endswith(("norm1.weight", "norm2.weight"))]
    assert len(fixed) == 7
    assert all(torch.equal(before[name], after[name]) for name in fixed)
    assert all(not torch.equal(before[name], after[name]) for name, _ in net.named_parameters())


def test_permuted_channels_leave_the_outputs(experiment, net):
    x = replace(experiment, attack=build_attack("permute"))
    inputs = x.task.example(4).random_(0, 256)
    reference = net(inputs).detach()
    for _, _, permuted in snapshots(x, net, None):
        assert torch.allclose(permuted(inputs), reference, atol=1e-4 * float(reference.abs().max()))
        ours, theirs = net.blocks[0].conv1.weight, permuted.blocks[0].conv1.weight
        assert not torch.equal(ours, theirs)


def test_biases_train_faster_and_decay_the_same():
    train = spec.build(config("train=fast").train, "train")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    one, two = train.optimizer_for(list(net.parameters()), [net[1].bias]).param_groups
    assert [len(group["params"]) for group in (one, two)] == [3, 1]
    assert two["lr"] == 64 * one["lr"]
    assert two["lr"] * two["weight_decay"] == pytest.approx(one["lr"] * one["weight_decay"])


def test_only_biases_without_trained_scales_are_fast(net):
    train = spec.build(config("train=fast").train, "train")

    def rates(network: nn.Module) -> list[int]:
        groups = train.optimizer_for([*network.parameters()], fast(network)).param_groups
        return [len(group["params"]) for group in groups]

    assert rates(net)[1] == 6
    assert len(rates(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))) == 1  # a ReLU's units would die


def test_labels_are_smoothed_for_the_owner_alone(experiment, net):
    inputs, labels = next(iter(experiment.task.view("owner").batches("owner", 32, 0)))
    fit = stages.owner_fit(experiment)
    logits = net(inputs)
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.2)
    assert torch.equal(stages.owned(experiment, fit).loss(net, (inputs, labels)), expected)
    attacker = experiment.task.view("attacker")
    assert torch.equal(attacker.loss(net, (inputs, labels)), functional.cross_entropy(logits, labels))
    plain = stages.owned(experiment, fit.using(label_smoothing=0.0))
    assert torch.equal(plain.loss(net, (inputs, labels)), functional.cross_entropy(logits, labels))


def test_finetuning_has_a_schedule_of_its_own(tmp_path):
    def made(*more):
        return run.prepare(tiny(tmp_path, "uchida", "none", *more))

    scratch, tuned = "method.situation=scratch", "method.situation=finetune"
    own = "train.finetune={epochs:2,lr:0.001}"
    assert made(scratch).mark_identity == made(scratch, own).mark_identity
    assert made(tuned).host_identity == made(tuned, own).host_identity
    assert made(tuned).mark_identity != made(tuned, own).mark_identity
    fits = {name: stages.owner_fit(made(tuned, own), name).train for name in ("host", "mark")}
    assert (fits["host"].epochs, fits["mark"].epochs, fits["mark"].lr) == (6, 2, 0.001)
    assert stages.owner_fit(made(scratch, own)).train.epochs == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.finetune={epoch:2}"], "train.finetune.epoch: no such key; did you mean 'epochs'?"),
        (["train.finetune={precision:float32}"], "train.finetune.precision: no such key"),
        (["train.finetune={lr:-1}"], "train.lr=-1: must be above 0"),
    ],
)
def test_a_wrong_schedule_of_finetuning_is_one_line(tmp_path, words, said):
    with pytest.raises(UserError) as raised:
        run.prepare(tiny(tmp_path, "uchida", "none", *words))
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_narrow_networks_and_other_tasks_are_refused(tmp_path, picture_folder):
    with pytest.raises(ConfigError, match="must be from 24"):
        spec.build(config("model=cifarnet", "model.widths=[16,32,32]").model, "model")
    pictures = [word for word in restoration(picture_folder) if not word.startswith("model")]
    done = command(*pictures, "method=none", "model=cifarnet", f"results_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: model cifarnet gives no images: ")
    with pytest.raises(ConfigError, match="for task=classification"):  # of a task without patches
        spec.build(config("model=cifarnet").model, "model").build(base.Signature(10, 32, (0.0,) * 3, (1.0,) * 3), 0)
