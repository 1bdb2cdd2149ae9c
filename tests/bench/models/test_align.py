"""What an attacker exchanged and scaled goes back to its place, by weights that say nothing of the message."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.permute import disguise
from bench import metrics, run
from bench.models import align, weights
from tests.attacks.test_permute import attacked, build, distance, images, vary
from tests.helpers import NEURALMARK, UCHIDA, headed, tiny

METHODS = ["uchida", "neuralmark", "watermas", "frequency"]


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())


def furthest(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of a tensor's entries, in its largest entry."""
    one, two = a.state_dict(), b.state_dict()
    return max(float((v - two[k]).abs().max() / v.abs().max()) for k, v in one.items() if v.float().abs().max() > 0)


def marking(folder: Path, method: str, *more: str):
    """A method with a few bits, an untrained network and a key for it."""
    x = run.prepare(tiny(folder, method, "none", "method.n_bits=16", *more))
    model = vary(x.method.extend(x.task.build(x.model, 0), x.task, 0).eval())
    return x.method, model, x.method.keygen(model, np.random.default_rng(0), x.task), x.task.example()


def small(seed: int, width: int = 64, middle: int = 64) -> nn.Module:
    """Three convolutions on 8x8 maps with batch normalisation: widths are powers of two, so that means are exact."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    for i, (a, b) in enumerate([(3, width), (width, middle), (middle, width)], 1):
        net.add_module(f"stage{i}", nn.Conv2d(a, b, 3, padding=1, bias=False))
        net.add_module(f"norm{i}", nn.BatchNorm2d(b))
        net.add_module(f"relu{i}", nn.ReLU())
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(width, 10))
    return vary(headed(net).eval())


INPUTS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def permuted(net: nn.Module, scale: float, seed: int = 3) -> nn.Module:
    model = copy.deepcopy(net)
    done, undone = disguise(model, INPUTS, scale, np.random.default_rng(seed))
    assert done
    assert not undone
    return model


# Exactly back


@pytest.mark.parametrize(
    ("name", "limit"), [("test_resnet", 1e-6), ("mobilenetv3_small_100", 1e-4), ("vit_tiny_patch16_224", 1e-6)]
)
def test_what_was_exchanged_goes_back(name, limit):
    """Batch normalisation, residual streams; squeeze-and-excitation, depthwise convolutions; heads of attention."""
    net = build(name)
    reference = align.prepared(net, {}, images(2))
    untouched = align.aligned(reference, net)
    assert same(untouched.model, net)
    assert (untouched.moved, untouched.flipped, untouched.scaled, untouched.converged) == (0, 0, False, True)
    assert untouched.score == pytest.approx(1)
    for scale in (1, 4):
        suspect, _, _ = attacked(net, scale)
        before = copy.deepcopy(suspect)
        found = align.aligned(reference, suspect)
        assert same(suspect, before)
        assert found.moved >= len(reference.families) + len(reference.heads)
        assert found.bare == found.merged == 0
        assert found.scaled == (scale > 1)
        assert same(found.model, net) if scale == 1 else furthest(net, found.model) <= limit
        assert distance(suspect, found.model) <= 1e-4


@pytest.mark.parametrize("method", [*METHODS, "frequency method.module=false"])
def test_marked_weights_go_back_without_being_looked_at(results, method):
    of, model, key, example = marking(results, *method.split())
    reference = align.prepared(model, align.hidden(of, model, key), example)
    assert not reference.bare
    for scale in (1, 4):
        suspect = copy.deepcopy(model)
        disguise(suspect, images(), scale, np.random.default_rng(1))
        found = align.aligned(reference, suspect)
        for name in key.where:
            back, own = weights.read(found.model, name), weights.read(model, name)
            assert torch.equal(back, own) if scale == 1 else (back - own).abs().max() <= 1e-5 * own.abs().max()
        assert distance(suspect, found.model) <= 1e-4


def test_of_a_method_that_says_nothing_all_is_taken_as_read(results):
    _, model, key, example = marking(results, "uchida")
    silent = type("Silent", (), {"unread": lambda self, model, key: None})()
    hidden = align.hidden(silent, model, key)
    assert {name: float(t.abs().sum()) for name, t in hidden.items()} == dict.fromkeys(key.where, 0.0)
    suspect = copy.deepcopy(model)
    disguise(suspect, images(), 1, np.random.default_rng(1))
    found = align.aligned(align.prepared(model, hidden, example), suspect)
    (name,) = key.where  # its neighbours say where its channels belong
    assert torch.equal(weights.read(found.model, name), weights.read(model, name))


def test_signs_of_rows_before_a_batch_normalisation():
    net, draws = small(0), np.random.default_rng(2)
    suspect = permuted(net, 4)
    with torch.no_grad():
        for i in (1, 2, 3):
            conv, norm = suspect.get_submodule(f"stage{i}"), suspect.get_submodule(f"norm{i}")
            signs = torch.from_numpy(draws.choice([-1.0, 1.0], len(conv.weight))).float()
            conv.weight.mul_(signs[:, None, None, None])
            norm.running_mean.mul_(signs)
            norm.weight.mul_(signs)
        assert torch.allclose(suspect(INPUTS), net(INPUTS), atol=1e-4)
    key = UCHIDA.keygen(net, np.random.default_rng(0), None)
    for hidden in ({}, UCHIDA.unread(net, key)):
        found = align.aligned(align.prepared(net, hidden, INPUTS), suspect)
        assert found.flipped > 20
        assert furthest(net, found.model) <= 1e-5


def test_noise_and_pruning_on_top_do_not_hide_the_order():
    net = small(0)
    suspect, draws = permuted(net, 1), torch.Generator().manual_seed(0)
    key = NEURALMARK.keygen(net, np.random.default_rng(0), None)
    with torch.no_grad():
        for w in weights.weights(suspect).values():
            w.add_(0.25 * w.std() * torch.randn(w.shape, generator=draws))
            w.mul_(w.abs() > w.abs().flatten().quantile(0.5))
    found = align.aligned(align.prepared(net, NEURALMARK.unread(net, key), INPUTS), suspect)
    back, own = (m.get_parameter("stage3.weight") for m in (found.model, net))
    kept = back != 0
    assert torch.corrcoef(torch.stack([back[kept], own[kept]]))[0, 1] > 0.95  # noise of a quarter leaves .97
    assert found.converged
    assert 0.5 < found.score < 1


# Blind


def noisy(net: nn.Module, method, key) -> nn.Module:
    """A network whose read part is another's."""
    other, draws = copy.deepcopy(net), torch.Generator().manual_seed(9)
    hidden = method.unread(net, key)
    with torch.no_grad():
        for name in key.where:
            w = other.get_parameter(name)
            w.copy_(exact(torch.randn(w.shape, generator=draws)))
            w.add_(hidden[name] - method.unread(other, key)[name])
    return other


def exact(values: Tensor) -> Tensor:
    return (values * 2**8).round() / 2**8


@pytest.mark.parametrize("method", [UCHIDA, NEURALMARK])
def test_the_order_does_not_depend_on_what_is_read(method):
    net = small(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(exact(p))
    key = method.keygen(net, np.random.default_rng(0), None)
    other = noisy(net, method, key)
    assert metrics.ber(method.extract(other, key, None), method.extract(net, key, None) > 0.5) > 0.2
    suspects = [permuted(net, 4), small(1)]
    with torch.no_grad():
        for p in suspects[0].parameters():
            p.add_(0.1 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    blind = [align.prepared(m, method.unread(m, key), INPUTS) for m in (net, other)]
    looking = [align.prepared(m, {}, INPUTS) for m in (net, other)]
    for suspect in suspects:
        one, two = (align.aligned(reference, suspect) for reference in blind)
        assert one.moved >= 3
        assert same(one.model, two.model)  # order, signs and factors
    # and this test can fail: whoever looks finds a stranger's order by the bits
    one, two = (align.aligned(reference, suspects[1]) for reference in looking)
    assert not same(one.model, two.model)


@pytest.fixture(scope="module")
def strangers() -> list[nn.Module]:
    return [small(100 + i) for i in range(20)]


def marked(method, seed: int) -> tuple[nn.Module, object]:
    """A network with a strong mark: by the least change that makes each bit's logit four times what it is by chance."""
    net = small(seed)
    key = method.keygen(net, np.random.default_rng(seed), None)
    weight = net.get_parameter(key.where[0])
    y = method.logits(net, key)
    slopes = torch.stack([torch.autograd.grad(bit, weight, retain_graph=True)[0].flatten() for bit in y])
    wanted = (key.message.float() * 2 - 1) * 4 * float(weight.detach().std()) * slopes.norm(dim=1)
    change = torch.linalg.lstsq(slopes, (wanted - y.detach())[:, None], driver="gelsd").solution
    with torch.no_grad():
        weight.add_(change.view(weight.shape))
    assert metrics.ber(method.extract(net, key, None), key.message) == 0
    return net, key


def errors(method, strangers: list[nn.Module], look: bool) -> Iterator[float]:
    net, key = marked(method, 0)
    reference = align.prepared(net, {} if look else method.unread(net, key), INPUTS)
    for stranger in strangers:
        found = align.aligned(reference, stranger)
        assert found.moved == 3
        yield metrics.ber(method.extract(found.model, key, None), key.message)


@pytest.mark.parametrize("method", [replace(UCHIDA, n_bits=64), replace(NEURALMARK, n_bits=64, k=128)])
def test_bits_of_strangers_are_coin_tosses(method, strangers):
    blind, looking = (list(errors(method, strangers, look)) for look in (False, True))
    spread = 0.5 / np.sqrt(method.n_bits * len(strangers))
    assert abs(np.mean(blind) - 0.5) <= 3.3 * spread  # 1 in 1,000
    assert np.mean(looking) < 0.5 - 5 * spread


# Added units


def widened(net: nn.Module, kind: str, count: int = 8) -> nn.Module:
    """`small` with more units in its middle layer, which change no output."""
    wide, middle = small(7, middle=64 + count), slice(64, 64 + count)
    state, own = wide.state_dict(), net.state_dict()
    for name, value in own.items():
        if value.shape == state[name].shape:
            state[name].copy_(value)
    source = torch.arange(count) if kind == "split" else torch.arange(count) // 2
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"norm2.{name}"].copy_(torch.cat([own[f"norm2.{name}"], own[f"norm2.{name}"][source]]))
    first, second = state["stage2.weight"], state["stage3.weight"]
    first[:64], second[:, :64] = own["stage2.weight"], own["stage3.weight"]
    if kind == "split":
        first[middle], second[:, middle] = first[:count], 0.3 * second[:, :count]
        second[:, :count] *= 0.7
    elif kind == "zero":
        second[:, middle] = 0
    else:  # pairs that cancel
        first[middle] = first[middle][source]
        second[:, middle][:, 1::2] = -second[:, middle][:, ::2]
    return wide


@pytest.mark.parametrize("kind", ["split", "zero", "clique"])
@pytest.mark.parametrize("scale", [1, 4])
def test_units_that_were_added_are_merged(kind, scale):
    net = small(0)
    key = NEURALMARK.keygen(net, np.random.default_rng(0), None)
    reference = align.prepared(net, NEURALMARK.unread(net, key), INPUTS)
    suspect = permuted(widened(net, kind), scale)
    assert torch.allclose(suspect(INPUTS), net(INPUTS), atol=1e-4)
    found = align.aligned(reference, suspect)
    assert found.merged == 8
    assert furthest(net, found.model) <= (1e-6 if scale == 1 else 1e-5)
    assert torch.allclose(found.model(INPUTS), suspect(INPUTS), atol=1e-4)


def test_other_networks_are_not_brought_to_the_shapes():
    reference = align.prepared(small(0), {}, INPUTS)
    for other, why in ((small(1, middle=80), "few are like"), (build("test_resnet"), "stage1")):
        with pytest.raises(align.OtherShapes, match=why):
            align.aligned(reference, other)


def test_a_head_for_other_classes_is_no_obstacle():
    net = small(0)
    suspect = permuted(net, 4)
    suspect.head = nn.Linear(64, 7)
    found = align.aligned(align.prepared(net, {}, INPUTS), suspect)
    assert torch.allclose(found.model(INPUTS), suspect(INPUTS), atol=1e-4)
    assert torch.allclose(found.model.stage2.weight, net.stage2.weight, atol=1e-5)


# Edges


def test_twice_is_the_same():
    net, suspect = small(0), small(1)
    one, two = (align.aligned(align.prepared(net, {}, INPUTS), suspect) for _ in range(2))
    assert same(one.model, two.model)
    assert replace(one, model=None) == replace(two, model=None)


def test_what_is_no_number_and_dead_channels_match_nothing():
    net = small(0)
    with torch.no_grad():
        net.stage2.weight[3] = 0
        net.stage3.weight[:, 3] = 0
    suspect = permuted(net, 1)
    with torch.no_grad():
        suspect.stage3.weight[5, 7] = float("nan")
        suspect.stage1.weight[2, 1, 0, 0] = float("inf")
    found = align.aligned(align.prepared(net, {}, INPUTS), suspect)
    assert found.converged
    assert np.isfinite(found.score)
    for name in ("stage1", "stage2", "stage3"):
        back, own = (m.get_parameter(f"{name}.weight") for m in (found.model, net))
        ok = back.isfinite()
        assert torch.equal(back[ok], own[ok])
        assert int((~ok).sum()) == {"stage1": 1, "stage2": 0, "stage3": 9}[name]
