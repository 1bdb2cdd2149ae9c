"""The attack that changes the weights and not the function: what it may and does exchange, network by network."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import _disguise
from attacks._disguise import disguise
from attacks.permute import Permute
from bench import models
from bench.errors import ConfigError
from bench.models import base, weights
from bench.types import Victim

PIXELS = 32
IO = base.Signature(10, PIXELS, (128.0, 100.0, 90.0), (60.0, 50.0, 40.0))
SHALLOW = {
    "vit_tiny_patch16_224": {"depth": 3},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1, 1, 1), "embed_dim": 48},
    "swinv2_tiny_window8_256": {"depths": (2, 1, 1, 1), "embed_dim": 48},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
}
# Share of the convolution and linear weights that must have moved: all but a channel here and there that stays.
NETS = {
    "resnet18": 0.99,
    "test_resnet": 0.99,
    "vgg11_bn": 0.99,
    "mobilenetv3_small_100": 0.99,
    "regnetx_002": 0.99,
    "vit_tiny_patch16_224": 0.99,
    "convnext_atto": 0.99,
    "swin_tiny_patch4_window7_224": 0.99,
    "swinv2_tiny_window8_256": 0.99,
    "mixer_s32_224": 0.99,
    "googlenet": 0.99,
    "shufflenet_v2_x0_5": 0.99,
}
# The families that the others stand for: CI runs them with the slow tests.
FURTHER = ("regnetx_002", "swinv2_tiny_window8_256", "googlenet", "shufflenet_v2_x0_5")
SHOWN = [pytest.param(n, marks=[pytest.mark.slow, pytest.mark.quick] if n in FURTHER else []) for n in NETS]


def build(name: str) -> nn.Module:
    """A network in evaluation mode none of whose vectors is constant: statistics, affine pairs, layer scales."""
    source = "torchvision" if name in ("googlenet", "shufflenet_v2_x0_5", "vit_b_32") else "timm"
    stem = "small" if name in ("vgg11_bn", "googlenet") else "imagenet"
    more = {"label": None, "checkpoint": None, "patch_size": None, "window_size": None}
    net = models.Model(source=source, name=name, stem=stem, kwargs=SHALLOW.get(name, {}), **more).build(IO, 0).eval()
    if name.startswith("mixer"):
        net.blocks = net.blocks[:2]
    return vary(net)


@torch.no_grad()
def vary(net: nn.Module) -> nn.Module:
    draws = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.num_features, generator=draws) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=draws) + 0.5)
    for p in net.parameters():
        if p.dim() == 1 or (p.numel() > 1 and p.std() == 0):  # a head or a position code that starts at zero
            p.add_(torch.randn(p.shape, generator=draws) * 0.1)
    return net


def images(count: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).integers(0, 256, (count, 3, PIXELS, PIXELS), dtype=np.uint8))


def distance(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of the logits on images that the attack has not seen, over the largest logit."""
    with torch.no_grad():
        x, y = a(images()), b(images())
    return float((x - y).abs().max() / x.abs().max())


def content(tensor: Tensor) -> int:
    """Same for the same values in any order; quicker than sorting."""
    bits = tensor.detach().contiguous().view(-1).view(torch.int32).long()
    return int(((bits ^ (bits >> 13)) * 0x9E3779B97F4A7C1 + bits * bits).sum())


def attacked(net: nn.Module, scale: float, seed: int = 3) -> tuple[nn.Module, list, list]:
    draws = np.random.default_rng(seed)
    seen = torch.from_numpy(draws.integers(0, 256, (8, 3, PIXELS, PIXELS), dtype=np.uint8))
    model = copy.deepcopy(net)
    return model, *disguise(model, seen, scale, draws)


@dataclass
class Task:
    """All that the attack asks of a task."""

    def example(self, count: int = 2) -> Tensor:
        return torch.zeros(count, 3, PIXELS, PIXELS, dtype=torch.uint8)


def snapshots(net: nn.Module, scales: list[float], seed: int = 3) -> list:
    attack = Permute(goal="removal", seed=0, knows=["weights"], data="none", scales=scales)
    return list(attack.run(Victim(net, None, Task()), np.random.default_rng(seed), None))


@pytest.mark.parametrize("name", SHOWN)
def test_other_weights_same_logits(name):
    net = build(name)
    before = {k: w.detach().clone() for k, w in weights.weights(net).items()}
    for scale in (1, 4):
        model, done, undone = attacked(net, scale)
        assert distance(net, model) <= 1e-4
        assert done
        assert not undone  # the rules are exact: nothing had to be taken back
        after = weights.weights(model)
        moved = sum(int((after[k] != w).sum()) for k, w in before.items())
        assert moved / sum(w.numel() for w in before.values()) >= NETS[name]
        assert not any(torch.equal(after[k], w) for k, w in before.items())
        marked = weights.choose(net, None, Tensor.numel, 1000, "weights")
        assert (after[marked] != before[marked]).float().mean() > 0.95
        sums = [(w.abs().sum(), after[k].abs().sum()) for k, w in before.items()]
        if scale == 1:  # each tensor, buffers as well, holds the values it held
            state = model.state_dict()
            for k, v in net.state_dict().items():
                assert content(v) == content(state[k]), k
        else:
            still = [k for k, (a, b) in zip(before, sums, strict=True) if abs(a / b - 1) < 1e-6]
            # Where there is no ReLU the rows before a GELU keep their norms, and so does what writes a normed stream.
            assert marked not in still or name == "swinv2_tiny_window8_256"
            assert not still or name not in ("resnet18", "test_resnet", "vgg11_bn", "regnetx_002", "googlenet")


def test_whole_rows_move_and_the_next_layers_columns_with_them():
    net = build("resnet18")
    model, _, _ = attacked(net, 1)
    old, new = net.layer2[0], model.layer2[0]
    # Rows of conv1 are in an order of their own, and so are its columns: compare what neither order changes.
    rows = [b.conv1.weight.flatten(1).sort(1).values for b in (old, new)]
    order = torch.cdist(rows[1], rows[0]).argmin(1)
    assert sorted(order.tolist()) == list(range(len(order)))
    assert (order != torch.arange(len(order))).float().mean() > 0.9
    for vector in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(new.bn1, vector), getattr(old.bn1, vector)[order])
    columns = [b.conv2.weight.transpose(0, 1).flatten(1).sort(1).values for b in (old, new)]
    assert torch.equal(columns[1], columns[0][order])


def test_heads_move_and_dimensions_within_them():
    net = build("vit_tiny_patch16_224")
    model, _, _ = attacked(net, 1)
    old, new = (m.blocks[1].attn.qkv.bias.detach().view(3, 3, 64) for m in (net, model))
    blocks = [x.sort(2).values for x in (old, new)]
    order = torch.cdist(blocks[1][0], blocks[0][0]).argmin(1)
    assert torch.equal(blocks[1], blocks[0][:, order])  # a head's numbers stay together, of q, k and v alike
    assert not any(torch.equal(a, b) for a, b in zip(new, old[:, order], strict=True))


def test_scaling_changes_norms_within_its_range():
    net = build("resnet18")
    model, _, _ = attacked(net, 4)
    norms = [m.layer2[0].conv1.weight.flatten(1).norm(dim=1).sort().values for m in (net, model)]
    assert (norms[1] / norms[0]).max() > 1.5
    ratios = [m.bn1.weight.abs().sum() for m in (net, model)]
    assert 1 / 4 < ratios[1] / ratios[0] < 4
    # without batch normalisation too, through ReLU and max-pooling: neurons of the stem
    with torch.no_grad():
        assert not torch.allclose(net.bn1.weight.sort().values, model.bn1.weight.sort().values)


@pytest.mark.parametrize("scale", [1, 4])
def test_rows_whose_variance_cannot_follow_keep_their_scale(scale):
    net = build("test_resnet")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.mul_(torch.arange(module.num_features) % 2)  # a dead channel: 0
    model, done, undone = attacked(net, scale)
    assert done
    assert not undone
    assert distance(net, model) <= 1e-4
    assert all((m.running_var >= 0).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_module_beside_a_stage_moves_with_its_stream():
    """As the method `frequency` has it: a branch on the stage's output, added by a hook."""
    net = build("test_resnet")
    channels = net.layer3(net.layer2(net.layer1(torch.zeros(1, 32, 8, 8)))).shape[1]
    net.watermark = nn.Sequential(nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels))
    branch = vary(net).watermark

    def add(module: nn.Module, args: object, out: Tensor) -> Tensor:
        return out + root[0].watermark(out.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3))

    root = [net]
    net.layer3.register_forward_hook(add)
    before = branch[0].weight.detach().clone()
    net.eval()
    reference, x = net(images()), images()
    draws = np.random.default_rng(0)
    done, undone = disguise(net, x, 1, draws)
    assert done
    assert not undone
    assert (net(x) - reference).abs().max() <= 1e-4 * reference.abs().max()
    assert (branch[0].weight != before).float().mean() > 0.95
    assert torch.equal(branch[0].weight.flatten().sort().values, before.flatten().sort().values)


def test_what_changes_the_logits_is_undone(monkeypatch):
    net = build("test_resnet")
    honest = _disguise.permutations

    def wrong(trace, draws):
        tensor = trace.tensors["layer1.0.conv1.weight"]
        edits = list(honest(trace, draws))
        edits.insert(1, (("layer1.0.conv1.weight",), lambda: tensor.copy_(tensor.flip(0))))
        return edits

    monkeypatch.setattr(_disguise, "permutations", wrong)
    model, done, undone = attacked(net, 1)
    assert [names for names, _ in undone] == [("layer1.0.conv1.weight",)] * 2  # one of each pass
    assert len(done) > 5
    assert distance(net, model) <= 1e-4
    assert not torch.equal(model.layer1[0].conv1.weight, net.layer1[0].conv1.weight)  # by its own family all the same
    monkeypatch.setattr(_disguise, "permutations", lambda trace, draws: wrong(trace, draws)[1:2])
    (snapshot,) = snapshots(net, [1])
    assert "no channels" in snapshot.skipped
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in snapshot.model.state_dict().items())


def test_a_network_without_interchangeable_channels_is_skipped():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * PIXELS**2, 10))
    net.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    (snapshot,) = snapshots(net, [1])
    assert "no channels" in snapshot.skipped


def test_the_victim_is_left_alone_and_the_draws_are_its_own():
    net = build("test_resnet").train()
    net.layer1.eval()
    net.layer2.requires_grad_(False)
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    flags, random = [p.requires_grad for p in net.parameters()], torch.get_rng_state()
    np_random = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = snapshots(net, [1, 4])
    assert [(s.knob, s.strength, s.skipped) for s in (first, second)] == [("scale", 1, ""), ("scale", 4, "")]
    for model in (net, first.model, second.model):
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None and p.is_leaf for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (np.random.get_state()[1] == np_random).all()  # noqa: NPY002
    again, other = snapshots(net, [1])[0].model.state_dict(), snapshots(net, [1], seed=4)[0].model.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.model.state_dict().items())
    assert not all(torch.equal(v, other[k]) for k, v in first.model.state_dict().items())


def test_channels_last_moves_as_much():
    net = build("test_resnet")
    plain, last = attacked(net, 1), attacked(net.to(memory_format=torch.channels_last), 1)
    assert [names for names, _ in plain[1]] == [names for names, _ in last[1]]
    assert distance(net, last[0]) <= 1e-4


def test_scales_are_factors_of_at_least_one():
    for scales in ([], [0.5], [2, 2]):
        with pytest.raises(ConfigError, match=r"attack\.scales"):
            Permute(goal="removal", seed=0, knows=["weights"], data="none", scales=scales)
