"""The frequency method: what the paper proves, to float precision, and where the proof ends."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench import metrics, run, spec, stages
from bench.errors import ConfigError
from bench.models import branches, weights
from bench.types import Key
from methods import _matching, frequency
from methods.frequency import KERNELS, Module, basis
from tests.helpers import config, tiny

K = 3


def transform(kernel: torch.Tensor, u: torch.Tensor, v: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The paper's revised Fourier transform of kernels [..., K, K] at real u, v [P], on a map of `size`: [..., P]."""
    t, s = (torch.arange(k, dtype=torch.float64) for k in kernel.shape[-2:])
    phase = u[:, None, None] * t[:, None] / size[0] + v[:, None, None] * s / size[1]
    waves = torch.polar(torch.ones_like(phase), 2 * math.pi * phase)
    return torch.einsum("...ts,pts->...p", kernel.to(torch.complex128), waves)


def kernels(d: int = 4, c: int = 5, k: int = K) -> torch.Tensor:
    return torch.randn(d, c, k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def at_s(weight: torch.Tensor, size: tuple[int, int] = (12, 8)) -> torch.Tensor:
    """Components at S: u = iM/K or v = jN/K, with i, j from 1 and the other coordinate anything."""
    k = weight.shape[-1]
    draw = np.random.default_rng(0)
    u, v = [], []
    for i in range(1, k):
        for _ in range(4):
            u += [i * size[0] / k, draw.integers(k) * size[0] / k]
            v += [draw.integers(k) * size[1] / k, i * size[1] / k]
    return transform(weight, torch.tensor(u, dtype=torch.float64), torch.tensor(v, dtype=torch.float64), size)


def constant(n: int = 6, c: int = 5, size: tuple[int, int] = (12, 8)) -> torch.Tensor:
    x = torch.randn(n, c, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x.expand(-1, -1, *size).clone()


def layer(mode: str = "circular", **more) -> nn.Conv2d:
    more = {"padding": 1, "padding_mode": mode, **more} if mode != "none" else more
    conv = nn.Conv2d(5, 5, K, bias=False, **more).double()
    conv.weight.data = torch.randn(conv.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return conv


def off_direction(gradient: torch.Tensor) -> float:
    """Share of a gradient's energy that a kernel's components at S would see."""
    return float((gradient - gradient.mean((2, 3), keepdim=True)).norm() / gradient.norm())


def gradient(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    y = conv(x)
    target = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(4))
    (y.tanh() * target).sum().backward()
    return conv.weight.grad


def train(conv: nn.Conv2d, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int = 100) -> None:
    target = torch.randn(len(x), 5, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(conv(x).tanh().mean((2, 3)), target).backward()
        optimizer.step()


def test_the_revised_transform_is_the_kernels_own_dft_at_s():
    w, (m, n) = kernels(), (12, 8)
    i, j = (x.reshape(-1).double() for x in torch.meshgrid(torch.arange(K), torch.arange(K), indexing="ij"))
    own = torch.fft.fft2(w).flatten(2).conj()
    torch.testing.assert_close(transform(w, i * m / K, j * n / K, (m, n)), own, rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [3, 5])
def test_the_carriers_are_exactly_what_s_sees(k):
    rows = basis(k, 0, 12, 8).double()
    assert rows.shape == (k * k - 1, k * k)
    torch.testing.assert_close(rows @ rows.T, torch.eye(k * k - 1, dtype=torch.float64), rtol=0, atol=1e-6)
    assert rows.sum(1).abs().max() < 1e-6
    # A kernel of equal taps has no component at S; every carrier has one.
    assert at_s(torch.ones(1, 1, k, k, dtype=torch.float64)).abs().max() < 1e-12
    assert (at_s(rows.view(-1, 1, k, k)).abs().amax(2) > 0.1).all()


@pytest.mark.parametrize(
    "conv",
    [
        layer("circular"),
        layer("replicate"),
        layer("reflect"),
        layer("none"),
        layer("circular", stride=2),
        layer("circular", dilation=2, padding=2),
        layer("circular", groups=5),
    ],
    ids=["circular", "replicate", "reflect", "none", "stride", "dilation", "depthwise"],
)
def test_a_constant_input_moves_all_taps_alike(conv):
    assert off_direction(gradient(conv, constant())) < 1e-13


def test_zero_padding_or_another_input_does_not():
    assert off_direction(gradient(layer("zeros"), constant())) > 0.1
    varying = constant() + torch.randn(6, 5, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert off_direction(gradient(layer("circular"), varying)) > 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, 0.01),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
    ],
    ids=["sgd", "momentum", "adam", "rmsprop"],
)
def test_a_hundred_steps_leave_the_components_at_s(make):
    conv = layer()
    before, all_before = at_s(conv.weight.detach()), conv.weight.detach().clone()
    train(conv, make([conv.weight]), constant())
    assert (conv.weight.detach() - all_before).norm() > 0.1  # it did learn
    torch.testing.assert_close(at_s(conv.weight.detach()), before, rtol=0, atol=1e-11)


def test_weight_decay_scales_them_and_keeps_their_phases():
    for make in (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ):
        conv = layer()
        before = at_s(conv.weight.detach())
        train(conv, make([conv.weight]), constant())
        after = at_s(conv.weight.detach())
        ratio = (after / before).real
        assert ratio.min() > 0
        assert ratio.max() < 0.99
        torch.testing.assert_close(after, before * ratio.mean(), rtol=0, atol=1e-10)
    # The exception: L2 inside Adam's gradient gives every tap a step of its own.
    conv = layer()
    before = at_s(conv.weight.detach())
    train(conv, torch.optim.Adam([conv.weight], 0.01, weight_decay=0.1), constant())
    after = at_s(conv.weight.detach())
    scale = (after * before.conj()).real.sum() / before.abs().square().sum()
    assert (after - scale * before).norm() / after.norm() > 1e-3


def test_equivariance_to_scaling_and_permutation(results):
    # Of the carriers as the method reads them, and of the transform.
    x = run.prepare(tiny(results, "frequency", "none"))
    model = stages.skeleton(x)
    before, w = x.method.components(model).detach(), model.watermark.conv.weight.data
    draw = torch.Generator().manual_seed(8)
    n = len(w)
    a, rows, columns = torch.rand(n, generator=draw) + 0.5, *(torch.randperm(n, generator=draw) for _ in range(2))
    model.watermark.conv.weight.data = (w * a[:, None, None, None])[rows][:, columns]
    expected = (before * a[:, None, None])[rows][:, columns]
    torch.testing.assert_close(x.method.components(model).detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        at_s(model.watermark.conv.weight.double()), at_s((w * a[:, None, None, None]).double())[rows][:, columns]
    )


@pytest.mark.parametrize(("k", "left"), [(5, 16), (7, 40)])
def test_a_low_pass_band_leaves_fewer_components_and_keeps_those(k, left):
    size = (12, 12)
    rows = basis(k, 1, *size).double()
    assert rows.shape == (left, k * k)
    conv = nn.Conv2d(5, 5, k, bias=False, padding=k // 2, padding_mode="circular").double()
    x = torch.randn(6, 5, *size, dtype=torch.float64)
    kept = conv.weight.detach().flatten(2) @ rows.T
    train(conv, torch.optim.SGD([conv.weight], 0.05, momentum=0.9), frequency.lowpass(x, 1))
    torch.testing.assert_close(conv.weight.detach().flatten(2) @ rows.T, kept, rtol=0, atol=1e-6)
    wide = gradient(copy.deepcopy(conv), frequency.lowpass(x, 2)).flatten(2)
    assert (wide @ rows.T).norm() / wide.norm() > 0.01  # a wider band than the kernels were made for


@pytest.mark.parametrize("layout", ["first", "last", "tokens"])
def test_the_modules_short_cut_is_the_circular_convolution(layout):
    module = Module(6, K, 0, layout, (4, 4)).eval()
    x = torch.randn(2, 6, 4, 4)
    whole = nn.Conv2d(6, 6, K, bias=False, padding=1, padding_mode="circular")
    whole.weight = module.conv.weight
    y = module.bn(whole(x.mean((2, 3), keepdim=True).expand_as(x)))
    given = {"first": x, "last": x.permute(0, 2, 3, 1), "tokens": x.flatten(2).transpose(1, 2)}[layout]
    expected = {"first": y, "last": y.permute(0, 2, 3, 1), "tokens": y.flatten(2).transpose(1, 2)}[layout]
    torch.testing.assert_close(given + module(given), given + expected, rtol=1e-5, atol=1e-6)


def test_a_module_comes_and_goes_without_a_trace(results):
    x = run.prepare(tiny(results, "frequency", "none"))
    plain = stages.fresh(x)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    before, names = plain.eval()(images), set(plain.state_dict())
    extended = x.method.extend(plain, x.task, 0).eval()
    assert {n for n in extended.state_dict() if not n.startswith("watermark.")} == names
    assert not torch.equal(extended(images), before)
    other = copy.deepcopy(extended)
    other.watermark.conv.weight.data.zero_()
    assert not torch.equal(other(images), extended(images))  # a copy uses its own module
    assert torch.equal(branches.detach(extended)(images), before)
    assert branches.branch(extended) is None


def test_writing_the_message_costs_nothing_and_training_keeps_every_carrier(marked, results):
    x, model, key = marked("frequency")
    start = stages.skeleton(x)
    written = x.method.embed(copy.deepcopy(start), key, x.task.view("owner"), stages.owner_fit(x).using(epochs=0))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(written.eval()(images), start.eval()(images), rtol=1e-3, atol=1e-4)
    carriers = x.method.components(model).reshape(-1)[key.secret["assignment"].long()]
    bits = key.message.float()[:, None] * 2 - 1
    assert (carriers * key.secret["signs"] * bits > 0).all()


def test_anyone_reads_the_bits_with_numpy(marked):
    _, model, key = marked("frequency")
    w = model.state_dict()[KERNELS].numpy().astype(np.float64)
    t, s = np.indices((K, K)).reshape(2, -1)
    phase = 2 * np.pi * (np.outer(t, t) + np.outer(s, s)) / K
    hartley = ((np.cos(phase) + np.sin(phase)) / K)[1:]
    carriers = (w.reshape(*w.shape[:2], -1) @ hartley.T).reshape(-1)
    bits = (carriers[key.secret["assignment"].numpy()] * key.secret["signs"].numpy()).sum(1) > 0
    assert (bits == key.message.numpy()).all()


def scrambled(model: nn.Module, seed: int, noise: float = 0.0) -> nn.Module:
    """The module's kernels as an attacker leaves them who permutes, rescales and negates filters and channels."""
    draw = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    w = model.watermark.conv.weight.data
    order = torch.randperm(len(w), generator=draw)
    rows, columns = (torch.exp(torch.randn(len(w), generator=draw)) for _ in range(2))
    rows, columns = (x * torch.where(torch.rand(len(w), generator=draw) < 0.5, -1.0, 1.0) for x in (rows, columns))
    w += noise * w.std() * torch.randn(w.shape, generator=draw)
    model.watermark.conv.weight.data = w[order][:, order] * rows[:, None, None, None] * columns[:, None, None]
    return model


def test_permutation_and_scaling_are_undone_before_reading(marked):
    x, model, key = marked("frequency")
    for seed, noise in ((0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0), (4, 0.1), (5, 0.2)):
        attacked = scrambled(model, seed, noise)
        assert metrics.ber(x.method.extract(attacked, key, x.task), key.message) == 0
        blind = replace(x.method, match=False)
        assert metrics.ber(blind.extract(attacked, key, x.task), key.message) > 0.25


def test_a_matched_reading_gives_back_order_and_signs_and_evens_out_the_scale(marked):
    x, model, _ = marked("frequency")
    found = _matching.aligned(x.method.components(scrambled(model, 3)), x.method.components(model).detach())
    ratio = (found / x.method.components(model)).detach()
    assert (ratio > 0).all()
    # What is left is one factor a filter and one a channel: a table of rank one.
    table = ratio.log().mean(2)
    rest = table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
    assert rest.abs().max() < 1e-3
    assert table.std() < 0.2


def test_the_search_for_a_permutation_does_not_help_a_random_key(marked):
    # 300 keys against scrambled kernels: their bits are fair coins although the search maximised an agreement.
    x, model, key = marked("frequency")
    attacked, draws = scrambled(model, 4), np.random.default_rng(5)
    rates = []
    for _ in range(300):
        wrong = x.method.keygen(model, draws, x.task)
        rates.append(metrics.ber(x.method.extract(attacked, wrong, x.task), wrong.message))
    n = key.n_bits
    assert np.mean(rates) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(300 * n))
    assert np.std(rates) == pytest.approx(0.5 / np.sqrt(n), rel=0.25)


def test_commitment_pins_assignment_and_signs(marked):
    x, model, _ = marked("frequency")
    method = replace(x.method, binding="hash")
    key = method.keygen(model, np.random.default_rng(0), None)
    assert method.accepts(key)
    for change in (
        {"signs": -key.secret["signs"]},
        {"assignment": key.secret["assignment"].flip(0)},
        {"seed": key.secret["seed"].flip(0)},
        {"reference": -key.secret["reference"]},  # pilots decide in which order and sign the carriers are read
    ):
        assert not method.accepts(Key(key.message, {**key.secret, **change}, key.where))
    assert not method.accepts(Key(~key.message, key.secret, key.where))


def test_in_place_reads_nothing_from_the_mean_of_a_kernel(results):
    x = run.prepare(tiny(results, "frequency", "none", "method.module=false"))
    assert stages.mark(x)["ber"] == 0
    model = stages.load_weights(stages.skeleton(x), stages.mark(x).path)
    from bench.store.keys import load_key

    key = load_key(stages.mark(x).path / "key.safetensors")
    before = x.method.logits(model, key)
    weight = model.get_parameter(key.where[0])
    weight.data += torch.randn(*weight.shape[:2], 1, 1)
    torch.testing.assert_close(x.method.logits(model, key), before, rtol=1e-3, atol=1e-2)
    weight.data = weight.data.mean((2, 3), keepdim=True).expand_as(weight).clone()
    assert weights.read(model, key.where[0]).std() > 0
    assert x.method.logits(model, key).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.kernel=4"], "odd"),
        (["method.radius=1"], r"above 2 x radius \+ 1 = 3"),
        (["method.binding=hash", "method.module=false"], "module=true"),
    ],
)
def test_what_cannot_be_is_said(words, said):
    with pytest.raises(ConfigError, match=said):
        spec.build(config("method=frequency", *words).method, "method")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.stage=layer9"], "no such part; near: .*layer|no such part; .*layer"),
        (["method.n_bits=100000"], "channels enough for 100000 bits"),
        (["method.stage=fc"], "channels enough"),
    ],
)
def test_a_stage_that_does_not_serve_is_said(results, words, said):
    x = run.prepare(tiny(results, "frequency", "none", *words))
    with pytest.raises(ConfigError, match=said):
        stages.skeleton(x)


def test_a_module_that_is_no_number_is_no_evidence(marked):
    x, model, key = marked("frequency")
    ruined = copy.deepcopy(model)
    ruined.watermark.conv.weight.data.fill_(float("nan"))
    assert metrics.ber(x.method.extract(ruined, key, x.task), key.message) == 0.5


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("name", ["vit_tiny", "swin_tiny", "mobilenetv3_small", "vgg16_bn"])
def test_every_family_offers_a_place(results, name):
    x = run.prepare(config("method=frequency", "attack=none", f"model={name}", "device=cpu", f"results_dir={results}"))
    model = stages.skeleton(x).eval()
    key = x.method.keygen(model, np.random.default_rng(0), x.task)
    written = x.method.embed(model, key, x.task.view("owner"), stages.owner_fit(x).using(epochs=0))
    assert metrics.ber(x.method.extract(written, key, x.task), key.message) == 0
