"""Which tensors are weights, and which of them carries a mark."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.errors import ConfigError
from bench.models import weights
from tests.helpers import headed, net


def test_torchs_attention_is_pruned_and_quantised_whole():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert "self_attn.in_proj_weight" in weights.weights(layer)
    assert sum(w.numel() for w in weights.weights(layer).values()) == sum(
        p.numel() for p in layer.parameters() if p.dim() > 1
    )


def test_layer_rule():
    model = net()
    assert weights.choose(model, None, torch.Tensor.numel, 100, "weights") == "stage2.weight"
    assert weights.choose(model, "stage1", torch.Tensor.numel, 100, "weights") == "stage1.weight"
    assert weights.choose(model, "stage*", torch.Tensor.numel, 100, "weights") == "stage2.weight"
    assert weights.choose(model, "head", torch.Tensor.numel, 100, "weights") == "head.weight"
    # the last stage lacks capacity: the one before is asked
    wide = nn.ModuleDict({"stage1": nn.Linear(64, 64), "stage2": nn.Linear(64, 8), "head": nn.Linear(8, 10)})
    assert weights.choose(headed(wide), None, torch.Tensor.numel, 1000, "weights") == "stage1.weight"
    with pytest.raises(ConfigError, match=r"stagee1 matches no .* did you mean 'stage1'"):
        weights.choose(model, "stagee1", torch.Tensor.numel, 1, "weights")


def test_layer_rule_takes_the_first_of_equals_in_the_last_stage():
    import timm

    model = timm.create_model("resnet18", num_classes=10)
    assert weights.choose(model, None, torch.Tensor.numel, 16_384, "weights") == "layer4.0.conv2.weight"
    assert weights.stage("encoder.layers.encoder_layer_11.mlp.3.weight") == "encoder.layers.encoder_layer_11"
