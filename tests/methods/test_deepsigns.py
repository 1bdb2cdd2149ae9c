"""DeepSigns' mathematics: bits in what a layer gives for the key's images, and nothing else."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional

from attacks._rewrite import rewrite
from bench import metrics, spec
from bench.errors import ConfigError
from bench.models import weights
from bench.progress import silent
from bench.store.checkpoint import Checkpoint
from bench.train import Fit
from bench.types import Task
from methods._activations import activations, projected, rectified
from methods.deepsigns import Centres, Deepsigns
from tests.helpers import config, headed, rng

METHOD = Deepsigns(
    n_bits=12, classes=3, per_class=4, lambda1=0.1, lambda2=0.1, mu_lr=0.1,
    binding="none", situation="finetune", layer=None,
)  # fmt: skip
BOUND = replace(METHOD, binding="hash")


@dataclass(frozen=True)
class Toy(Task):
    """Patterns of 5 classes, 6x6, with noise."""

    gives = "classes"

    def size(self, split):
        return 60

    def tensors(self, split):
        self.check(split)
        draws = torch.Generator().manual_seed(7)
        labels = torch.arange(60) % 5
        means = torch.randint(40, 216, (5, 3, 6, 6), generator=draws)
        noise = torch.randint(-40, 40, (60, 3, 6, 6), generator=draws)
        return (means[labels] + noise).byte(), labels, torch.arange(60)

    def batches(self, split, batch_size, seed=None):
        images, labels, _ = self.tensors(split)
        for at in torch.randperm(60, generator=torch.Generator().manual_seed(seed or 0)).split(batch_size):
            yield images[at], labels[at]

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1])

    def example(self, count=2):
        return torch.zeros(count, 3, 6, 6, dtype=torch.uint8)


OWNER = Toy(role="owner")


class Scaled(nn.Module):
    def forward(self, x):
        return x.float() / 255


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = {
        "scaled": Scaled(), "stage1": nn.Conv2d(3, 8, 3), "norm1": nn.BatchNorm2d(8), "act1": nn.ReLU(),
        "drop": nn.Dropout(0.5), "stage2": nn.Conv2d(8, 16, 3, bias=False), "norm2": nn.BatchNorm2d(16),
        "act2": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(16, 5),
    }  # fmt: skip
    return headed(nn.Sequential(OrderedDict(parts))).eval()


@pytest.fixture(scope="module")
def owned():
    """A marked network and its key."""
    key = METHOD.keygen(network(), rng(), OWNER)
    return METHOD.embed(network(), key, OWNER, fit()), key


def fit(epochs: int = 25) -> Fit:
    train = spec.build(config("train.epochs=1").train, "train")
    return Fit(replace(train, epochs=epochs, batch_size=20, lr=0.01), 3)


# What is read


def test_bits_are_the_projected_means_of_the_classes():
    model, key = network(), METHOD.keygen(network(), rng(), OWNER)
    assert key.where == ("stage2.weight",)
    assert {name: tuple(x.shape) for name, x in key.secret.items()} == {
        "projection": (16, 4), "images": (12, 3, 6, 6), "labels": (3,),
    }  # fmt: skip
    given = key.secret["images"]
    with torch.no_grad():
        model.norm2.running_mean.normal_()
        model.norm2.weight.uniform_(0.5, 2)
    for part in ("scaled", "stage1", "norm1", "act1", "stage2", "norm2"):
        given = getattr(model, part)(given)
    by_hand = [given[4 * c : 4 * c + 4].mean((0, 2, 3)) @ key.secret["projection"] for c in range(3)]
    torch.testing.assert_close(METHOD.logits(model, key), torch.cat(by_hand), rtol=1e-4, atol=1e-6)
    assert torch.equal(METHOD.extract(model, key, OWNER), METHOD.logits(model, key).sigmoid())


def test_the_images_are_the_owners_class_by_class():
    key = METHOD.keygen(network(), rng(), OWNER)
    images, labels, _ = OWNER.tensors("owner")
    found = [int(labels[(images == one).flatten(1).all(1)][0]) for one in key.secret["images"]]
    assert found == key.secret["labels"].repeat_interleave(4).tolist()
    assert len(set(found)) == 3
    assert len({one.numpy().tobytes() for one in key.secret["images"]}) == 12


def test_what_comes_after_the_layer_is_not_read_and_what_comes_before_is():
    model, key = network(), METHOD.keygen(network(), rng(), OWNER)
    before = METHOD.logits(model, key)
    with torch.no_grad():
        for p in model.head.parameters():
            p.add_(1)
    assert torch.equal(METHOD.logits(model, key), before)
    with torch.no_grad():
        model.stage1.weight.add_(0.1)
    assert not torch.allclose(METHOD.logits(model, key), before)


def test_what_the_normalisation_takes_out_again_changes_no_bit():
    model, key = network(), METHOD.keygen(network(), rng(), OWNER)
    before, scale, shift = METHOD.logits(model, key), torch.rand(16) + 0.5, torch.randn(16)
    with torch.no_grad():
        model.stage2.bias = nn.Parameter(shift)
        model.stage2.weight *= scale.view(-1, 1, 1, 1)
        model.norm2.running_mean.mul_(scale).add_(shift)
        model.norm2.running_var.copy_((model.norm2.running_var + model.norm2.eps) * scale**2 - model.norm2.eps)
    torch.testing.assert_close(METHOD.logits(model, key), before, rtol=1e-3, atol=1e-4)


def test_logits_are_linear_in_the_marked_weight_and_can_be_rewritten():
    model, key = network(), METHOD.keygen(network(), rng(), OWNER)
    one, other = network(), network()
    with torch.no_grad():
        other.stage2.weight.copy_(torch.randn_like(other.stage2.weight))
        model.stage2.weight.copy_(2 * one.stage2.weight - 3 * other.stage2.weight)
    mixed = 2 * METHOD.logits(one, key) - 3 * METHOD.logits(other, key)
    torch.testing.assert_close(METHOD.logits(model, key), mixed, rtol=1e-4, atol=1e-4)
    rewrite(model, METHOD, key, key.message.numpy())
    assert metrics.ber(METHOD.extract(model, key, OWNER), key.message) == 0
    masks = weights.pointed(model, METHOD, key)
    assert list(masks) == ["stage2.weight"]


def test_no_bit_is_computed_from_what_the_judge_may_look_at():
    model, key = network(), METHOD.keygen(network(), rng(), OWNER)
    shown = METHOD.unread(model, key)["stage2.weight"]
    assert shown.norm() > 0.5 * model.stage2.weight.norm()
    with torch.no_grad():
        model.stage2.weight.copy_(shown)
    torch.testing.assert_close(METHOD.logits(model, key), torch.zeros(12), atol=1e-4, rtol=0)


def test_channels_before_may_change_places_and_those_of_the_layer_may_not():
    model, key = network(), METHOD.keygen(network(), rng(), OWNER)
    before, order = METHOD.logits(model, key), torch.arange(8).flip(0)
    with torch.no_grad():
        for x in (model.stage1.weight, model.stage1.bias, *model.norm1.state_dict().values()):
            if x.dim():
                x.copy_(x[order])
        model.stage2.weight.copy_(model.stage2.weight[:, order])
    torch.testing.assert_close(METHOD.logits(model, key), before, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.stage2.weight.copy_(model.stage2.weight.flip(0))
    back = replace(key, secret={**key.secret, "projection": key.secret["projection"].flip(0)})
    torch.testing.assert_close(METHOD.logits(model, back), before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(METHOD.logits(model, key), before, atol=1e-3)


class Windows(nn.Module):
    """Two windows of an image, put into the batch image by image, three tokens each."""

    def __init__(self):
        super().__init__()
        self.linear, self.idle = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x):
        return self.linear(x.reshape(-1, 3, 4)).flatten(1)


def test_tokens_and_windows_are_averaged_and_an_idle_layer_says_nothing():
    model, x = Windows(), torch.randn(5, 2, 3, 4)
    torch.testing.assert_close(activations(model, "linear.weight", x), model.linear(x).mean((1, 2)))
    idle = activations(model, "idle.weight", x)
    assert idle.shape == (5, 0)
    assert torch.equal(projected(idle, torch.ones(6, 2), 4), torch.zeros(4))


class Branches(nn.Module):
    """A residual block: `first` goes into a rectifier, `second` and `short` into a sum, done in place."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.second, self.short, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 3), nn.ReLU()
        self.plain, self.fused = nn.Conv2d(8, 4, 1), BatchNormAct2d(4)

    def forward(self, x):
        y = self.second(self.act(self.norm(self.first(x))))
        y += self.short(x)
        return self.fused(self.plain(self.last(y)))


def test_layers_before_an_activation_function_are_told_from_those_before_a_sum():
    assert rectified(Branches(), torch.randn(2, 3, 6, 6)) == {"first.weight", "plain.weight"}
    inner = [f"layer{i}.{b}.conv1.weight" for i in range(1, 5) for b in range(2)]
    task = SimpleNamespace(gives="classes", example=lambda: torch.zeros(2, 3, 32, 32))
    net = headed(timm.create_model("resnet18", num_classes=5))
    assert rectified(net, task.example()) == {"conv1.weight", *inner}
    assert METHOD._place(net, task) == ("layer4.1.conv1.weight", (512, 4))
    assert replace(METHOD, layer="layer4.0.conv2")._place(net, task)[0] == "layer4.0.conv2.weight"


def test_what_follows_in_place_is_not_read():
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), act=nn.ReLU(inplace=True)))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(activations(net, "conv.weight", x), net.conv(x).mean((2, 3)))


# What is embedded


def test_the_mark_is_embedded_where_it_is_read(owned):
    model, key = owned
    host = fit()(network(), OWNER)
    assert metrics.ber(METHOD.extract(model, key, OWNER), key.message) == 0
    assert metrics.ber(METHOD.extract(host, key, OWNER), key.message) > 0
    assert metrics.weakest(METHOD.extract(model, key, OWNER), key.message) > 0.75


def test_the_penalty_moves_the_means_to_the_centres_and_the_centres_to_the_bits():
    model = network()
    key = METHOD.keygen(model, rng(), OWNER)
    centres = Centres.of(METHOD, model, key)
    given = activations(model, key.where[0], key.secret["images"]).view(3, 4, 16).mean(1)
    torch.testing.assert_close(centres.mu.detach(), given.detach())  # they start at the means
    with torch.no_grad():
        centres.mu += torch.randn(3, 16)
    gap = (given - centres.mu).detach()
    value = centres.penalty(model)
    y = centres.mu @ key.secret["projection"]
    bce = functional.binary_cross_entropy_with_logits(y, centres.truth, reduction="sum")
    torch.testing.assert_close(value, 0.1 * gap.square().sum() + 0.1 * bce)
    value.backward()
    slope = -0.2 * gap + 0.1 * (y.sigmoid() - centres.truth).detach() @ key.secret["projection"].T
    torch.testing.assert_close(centres.mu.grad, slope)
    with torch.no_grad():
        model.stage2.weight -= 0.1 * model.stage2.weight.grad
    nearer = activations(model, key.where[0], key.secret["images"]).view(3, 4, 16).mean(1) - centres.mu
    assert nearer.square().sum() < gap.square().sum()
    for _ in range(200):
        centres.penalty(model).backward()
        centres.step(model)
    assert torch.equal(centres.mu @ key.secret["projection"] > 0, key.message.view(3, 4))


def test_the_keys_images_move_no_statistics_and_draw_no_dropout():
    model = network().train()
    model.drop.eval()
    key = METHOD.keygen(model, rng(), OWNER)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    Centres.of(METHOD, model, key).penalty(model).backward()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_training_goes_on_where_it_was_killed(tmp_path):
    key, found = METHOD.keygen(network(), rng(), OWNER), []
    for stop in (None, 2, None):
        model, kept = network(), Checkpoint(tmp_path, 0, silent) if found else None
        centres = Centres.of(METHOD, model, key)
        training = replace(fit(4), checkpoint=kept)
        for epoch in training.epochs(model, OWNER, penalty=centres.penalty, step=centres.step, state=[centres]):
            if epoch == stop:
                break
        found.append([centres.mu, *model.state_dict().values()])
    whole, half, gone_on = found
    assert all(torch.equal(x, y) for x, y in zip(whole, gone_on, strict=True))
    assert not torch.equal(whole[0], half[0])


def test_strength_is_both_lambdas():
    again = replace(METHOD, situation="scratch").again(10)
    assert (again.lambda1, again.lambda2, again.situation) == (1.0, 1.0, "finetune")
    assert (METHOD.trains_on, METHOD.from_scratch) == ("labels", False)
    assert (replace(METHOD, situation="scratch").trains_on, METHOD.access) == ("", "activations")


# Keys


def test_what_does_not_fit_is_said():
    with pytest.raises(ConfigError, match=r"needs 17 outputs, one for each of a class's 51 / 3 bits.*carries 16"):
        replace(METHOD, n_bits=51).keygen(network(), rng(), OWNER)
    with pytest.raises(ConfigError, match=r"method\.classes=6, but the training data are of 5"):
        replace(METHOD, classes=6).keygen(network(), rng(), OWNER)
    with pytest.raises(ConfigError, match=r"n_bits=10 is no multiple of method\.classes=3"):
        replace(METHOD, n_bits=10)

    class Pictures(Toy):
        gives = "pictures"

    with pytest.raises(ConfigError, match="task=classification"):
        METHOD.keygen(network(), rng(), Pictures(role="owner"))


def test_fewer_images_than_asked_for_are_taken_as_they_are():
    key = replace(METHOD, per_class=100).keygen(network(), rng(), OWNER)
    assert len(key.secret["images"]) == 36
    assert METHOD.logits(network(), key).shape == (12,)


def test_who_has_no_data_takes_abstract_pictures():
    key = METHOD.keygen(network(), rng(), Toy(role="outsider"))
    assert key.secret["images"].shape == (3, 3, 6, 6)
    assert (key.secret["labels"] == -1).all()
    assert 0 < metrics.ber(METHOD.extract(network(), key, OWNER), key.message) < 1


def test_a_key_that_fits_nothing_reads_nothing():
    model, key = network(), METHOD.keygen(network(), rng(), OWNER)
    other_size = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    for changed in (
        {"images": other_size},
        {"images": key.secret["images"][:11]},
        {"projection": key.secret["projection"][:15]},
        {"projection": key.secret["projection"][:, :3].repeat(1, 3)},
    ):
        soft = METHOD.extract(model, replace(key, secret={**key.secret, **changed}), OWNER)
        assert torch.equal(soft, torch.full((12,), 0.5)), changed


def test_binding_ties_message_and_projection_to_images_and_layer():
    key = BOUND.keygen(network(), rng(), OWNER)
    assert BOUND.accepts(key)
    assert not BOUND.accepts(METHOD.keygen(network(), rng(), OWNER))
    assert METHOD.accepts(METHOD.keygen(network(), rng(), OWNER))
    assert not BOUND.accepts(replace(key, where=("stage1.weight",)))
    assert not BOUND.accepts(replace(key, message=~key.message))
    flips = torch.where(torch.arange(4) == 1, -1.0, 1.0)
    for name, x in (
        ("projection", key.secret["projection"] * flips),
        ("images", key.secret["images"].roll(1, 0)),
        ("seed", key.secret["seed"] + 1),
    ):
        assert not BOUND.accepts(replace(key, secret={**key.secret, name: x})), name


@pytest.mark.parametrize("method", [METHOD, BOUND])
@pytest.mark.parametrize("role", ["owner", "outsider"])
def test_random_keys_read_coin_tosses_one_by_one_or_together(owned, method, role):
    model, own = owned
    task, one, many = Toy(role=role), rng(5), rng(5)
    errors = []
    for key, soft in method.trials(model, own, network(), many, 300, task):
        if len(errors) < 5:
            alone = method.keygen(network(), one, task)
            assert all(torch.equal(x, alone.secret[name]) for name, x in key.secret.items())
            assert torch.equal(key.message, alone.message)
            assert torch.allclose(soft, method.extract(model, alone, task), atol=1e-5)
        errors.append(metrics.ber(soft, key.message))
    assert np.mean(errors) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(300 * 12))
    assert np.std(errors) == pytest.approx(0.5 / np.sqrt(12), rel=0.2)  # bits of a binomial


def test_bound_bits_stay_independent_where_all_classes_show_the_same():
    """Who shows one picture for all classes reads every bit of a column alike; the bound message does not."""
    model, errors = network(), []
    for seed in range(300):
        key = BOUND.keygen(model, rng(seed), Toy(role="outsider"))
        same = key.secret["images"][:1].repeat(3, 1, 1, 1)
        soft = BOUND.extract(model, replace(key, secret={**key.secret, "images": same}), OWNER)
        assert torch.equal((soft > 0.5).view(3, 4), (soft > 0.5)[:4].repeat(3, 1))
        errors.append(metrics.ber(soft, key.message))
    assert np.std(errors) == pytest.approx(0.5 / np.sqrt(12), rel=0.2)
