"""Networks that give a class for each pixel: sides, heads, dead taps, order of channels."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from attacks._disguise import disguise
from bench import spec
from bench.errors import ConfigError
from bench.models import align, weights
from bench.models.base import Signature
from tests.helpers import COMPLETE, DEEPLAB, config

NAMED = {
    "unet_tiny": ["model=unet_tiny"],
    "deeplabv3_resnet10t": ["model=deeplabv3_resnet10t"],
    "deeplabv3_mobilenetv3": ["model=deeplabv3_mobilenetv3"],
    "lraspp": ["model=torchvision_segmentation", "model.name=lraspp_mobilenet_v3_large"],
    "fpn": ["model=smp", "model.name=fpn", "model.encoder=tu-test_resnet"],
    "tiny": list(DEEPLAB),
}


def io(height: int, width: int, classes: int = 11) -> Signature:
    return Signature(classes, max(height, width), (127.5,) * 3, (60.0,) * 3, shape=(height, width))


def built(words: list[str], height: int = 64, width: int = 64, classes: int = 11) -> nn.Module:
    model = spec.build(config("task=segmentation", *words).model, "model")
    return model.build(io(height, width, classes), 0)


def pictures(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8))


@pytest.mark.parametrize("name", ["unet_tiny", "lraspp", "fpn", "tiny"])
def test_maps_have_the_pictures_sides_whatever_those_are_and_nothing_is_downloaded(name):
    refuse = mock.Mock(side_effect=AssertionError("asked for a network"))
    with mock.patch("socket.socket.connect", refuse):
        net = built(NAMED[name], 45, 62).eval()
    with torch.no_grad():
        for sides in ((45, 62), (64, 64), (33, 80)):
            assert net(pictures(*sides)).shape == (2, 11, *sides)
        same = built(NAMED[name], 45, 62).eval()
        assert torch.equal(net(pictures(45, 62)), same(pictures(45, 62)))
    net.train()(pictures(64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", ["tiny", "unet_tiny"])
def test_padding_moves_no_pixel(name):
    """Sides are padded at the end and cut there: a picture of padded sides has the same map, where it is not padded."""
    net = built(NAMED[name], 61, 61).double().eval()
    small = pictures(61, 61)
    mean = torch.full((2, 3, 64, 64), 127.5, dtype=torch.float64)  # what padding is, once normalised
    mean[..., :61, :61] = small
    with torch.no_grad():
        assert torch.allclose(net(small), net(mean)[..., :61, :61])


def test_an_unusable_network_is_one_line():
    for words, said in (
        (["model=smp", "model.name=deeplab"], "segmentation_models_pytorch has none; did you mean 'deeplabv3'"),
        (["model=smp", "model.name=unet", "model.encoder=tu-nothing"], "unet over tu-nothing cannot be built"),
        (["model=smp", "model.name=unet", "+model.kwargs.depths=3"], "unet over tu-resnet10t cannot be built"),
        (["model=smp", "model.name=unet", "+model.kwargs.classes=3"], "the model has no layer with 11 outputs"),
        (["model=torchvision_segmentation", "model.name=resnet18"], "torchvision has no such segmentation model"),
        (["model=unet_tiny", "model.name=vnet"], "model.name=vnet: not known; valid: unet"),
    ):
        with pytest.raises(ConfigError) as told:
            built(words)
        assert said in str(told.value)


def test_rates_that_see_padding_only_are_dead_and_carry_no_mark():
    wide = built([*NAMED["tiny"][:-1], "+model.kwargs.decoder_atrous_rates=[12,24,36]"], 64, 64)
    pyramid = {f"decoder.aspp.convs.{i}.0.weight" for i in (1, 2, 3)}
    assert wide.anatomy.dead >= pyramid  # maps of 8 x 8
    assert not pyramid & set(weights.candidates(wide))
    live = built(NAMED["tiny"], 64, 64)
    assert not pyramid & live.anatomy.dead
    assert pyramid <= set(weights.candidates(live))
    # Their outer taps have no gradient: a mark there would survive because nobody needs it.
    wide.train()(pictures(64, 64)).square().mean().backward()
    slope = wide.get_parameter("decoder.aspp.convs.3.0.weight").grad.abs().sum((0, 1))
    assert slope[1, 1] > 0
    assert float(slope.sum() - slope[1, 1]) == 0


def test_torchvisions_usual_rates_are_dead_on_small_maps():
    net = built(NAMED["deeplabv3_mobilenetv3"], 90, 120)
    assert {f"classifier.0.convs.{i}.0.weight" for i in (1, 2, 3)} <= net.anatomy.dead


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("unet_tiny", {"head"}),
        ("tiny", {"segmentation_head.0"}),
        ("deeplabv3_mobilenetv3", {"classifier.4"}),  # `classifier` is the whole pyramid
        ("lraspp", {"classifier.low_classifier", "classifier.high_classifier"}),
    ],
)
def test_heads_are_the_layers_that_give_logits_and_no_more(name, heads):
    net = built(NAMED[name])
    assert net.anatomy.heads == heads
    offered = {k.removesuffix(".weight") for k in weights.candidates(net)}
    assert not offered & heads
    assert any(k.startswith(("classifier.", "decoder.")) for k in offered)


def test_an_auxiliary_head_is_left_out_and_taken_for_no_head():
    words = ["model=torchvision_segmentation", "model.name=deeplabv3_mobilenet_v3_large", "+model.kwargs.aux_loss=true"]
    net, plain = built(words), built(NAMED["deeplabv3_mobilenetv3"])
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert net.anatomy.heads == {"classifier.4"}
    out = net.eval()(pictures(64, 64))
    assert isinstance(out, torch.Tensor)
    assert out.shape == (2, 11, 64, 64)


def test_as_many_classes_as_channels_are_no_second_head():
    net = built(NAMED["tiny"], classes=32)  # of the pyramid
    assert net.anatomy.heads == {"segmentation_head.0"}


@pytest.mark.parametrize("name", ["tiny", "unet_tiny", pytest.param("lraspp", marks=COMPLETE)])
def test_channels_are_exchanged_and_put_back(name):
    """Branches of a pyramid, skips, pooling, upsampling: other weights, the same maps; and in order again."""
    net = built(NAMED[name], 45, 62)
    for _ in range(2):  # statistics of their own
        net.train()(pictures(45, 62, 8))
    net.eval()
    with torch.no_grad():
        for p in net.parameters():  # nothing at its start: biases of 0, scales of 1
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    own, before = {k: v.clone() for k, v in net.state_dict().items()}, net(pictures(45, 62)).detach()
    reference = align.prepared(net, {}, pictures(45, 62))
    done, undone = disguise(net, pictures(45, 62), 3.0, np.random.default_rng(0))
    assert done
    assert not undone
    assert torch.allclose(net(pictures(45, 62)), before, atol=1e-4 * float(before.abs().max()))
    mark = weights.choose(net, None, torch.Tensor.numel, 1000, "weights")
    assert float((net.state_dict()[mark] - own[mark]).abs().max()) > 0.01
    found = align.aligned(reference, net).model.state_dict()
    assert torch.allclose(found[mark], own[mark], atol=1e-3 * float(own[mark].abs().max()))
