"""What weights show of a mark."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attacks._layers import FEATURES, Layer, conspicuous, layers
from bench.models import branches
from tests.helpers import headed


def test_the_ratio_is_one_of_independent_filters_and_counts_what_they_share():
    torch.manual_seed(0)
    w = torch.randn(256, 64, 3, 3)
    assert Layer(w).ratio == pytest.approx(1, abs=0.1)
    # A filter of standard deviation s in all rows: sqrt(out (s^2 + 1 / out) / (1 + s^2)).
    s = 0.5
    shared = w + s * torch.randn(1, 64, 3, 3)
    assert Layer(shared).ratio == pytest.approx((256 * (s**2 + 1 / 256) / (1 + s**2)) ** 0.5, rel=0.1)
    assert Layer(3 * shared).ratio == pytest.approx(Layer(shared).ratio)
    # By hand: columns' means 1 and 3 (std sqrt 2), two rows; all of 0, 2, 2, 4 has std sqrt(8/3).
    assert Layer(torch.tensor([[0.0, 2.0], [2.0, 4.0]])).ratio == pytest.approx((2 * 2 / (8 / 3)) ** 0.5)


@pytest.mark.parametrize("size", [2_000, 100_000, 2_400_000])
def test_random_weights_repeat_no_magnitude_beyond_chance(size):
    for seed, std in enumerate((0.02, 1.0)):
        generator = torch.Generator().manual_seed(seed)
        for w in (torch.randn(size, generator=generator), torch.rand(size, generator=generator) - 0.5):
            assert not Layer((std * w).view(-1, 4)).repeated.any()


def test_constructed_repeats_are_found_and_nothing_else():
    w = torch.randn(300, 200, generator=torch.Generator().manual_seed(3))
    where = torch.randperm(w.numel(), generator=torch.Generator().manual_seed(4))[:40]
    w.view(-1)[where] = torch.tensor([0.7, -0.7]).repeat(20)
    mask = Layer(w).repeated
    assert sorted(mask.view(-1).nonzero()[:, 0].tolist()) == sorted(where.tolist())


def test_neither_pruned_nor_half_precision_weights_are_taken_for_repeats():
    w = torch.randn(300, 200, generator=torch.Generator().manual_seed(3))
    assert not Layer(w * (torch.rand(300, 200) < 0.5)).repeated.any()
    assert not Layer(w.half().float()).repeated.any()
    assert not Layer((w * 4).round()).repeated.any()


def test_the_layer_that_stands_out_is_named_by_either_sign():
    torch.manual_seed(0)
    found = {f"layer{i}": Layer(torch.randn(32, 64)) for i in range(5)}
    found["mean"] = Layer(torch.randn(64, 64) + torch.randn(1, 64))
    assert conspicuous(found, "ratio")[0] == "mean"
    found["layer2"] = Layer(2 * found["layer2"].weight)
    name, score = conspicuous(found, "spread")
    assert name == "layer2"
    assert score == pytest.approx(np.log(2), abs=0.1)
    # One of a kind has nothing to be compared with.
    assert conspicuous({"alone": found["mean"]}, "spread") == (None, 0.0)


def test_features_are_finite_and_the_added_module_is_where_a_mark_is():
    net = headed(nn.ModuleDict({"stage1": nn.Linear(8, 8), "head": nn.Linear(8, 3)}))
    assert [*layers(net)] == ["stage1.weight"]
    added = nn.Module()
    added.conv = nn.Conv2d(3, 3, 3)
    branches.attach(net, "stage1", added)
    assert [*layers(net)] == [f"{branches.NAME}.conv.weight"]
    for w in (torch.zeros(8, 8), torch.ones(8, 8), torch.randn(8, 1), torch.randn(8, 8)):
        features = Layer(w).features
        assert features.shape == (FEATURES,)
        assert np.isfinite(features).all()
