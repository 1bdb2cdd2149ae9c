"""Surrogates: augmented pairs, losses, the file of VGG-16."""

from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from bench import spec
from tests.helpers import config


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_both_pictures_of_a_pair_are_augmented_alike(augment):
    attack = spec.build(config("task=restoration", "attack=surrogate", f"attack.augment={augment}").attack, "attack")
    torch.manual_seed(3)
    images = torch.rand(16, 3, 24, 24)
    one, two = attack._augmented(images, 1 - images)
    assert torch.equal(one, 1 - two)
    assert torch.equal(one, images) is (augment == "none")
    assert one.shape == images.shape
    if augment == "flip":
        kept = (one == images).flatten(1).all(1)
        assert 0 < int(kept.sum()) < 16
        assert torch.equal(one[~kept], images[~kept].flip(3))


@pytest.mark.parametrize("loss", ["l2", "l1", "gan", "perceptual"])
def test_surrogates_losses_fall_towards_the_target(loss):
    attack = spec.build(config("task=restoration", "attack=surrogate").attack, "attack")
    torch.manual_seed(0)
    wanted = torch.rand(2, 3, 16, 16) * 255
    distance, more = attack._distance(loss, 5, wanted)
    for p in (p for net in more for p in net.parameters()):
        p.data.zero_()  # a discriminator without an opinion
    far, near = (distance(wanted + much * torch.randn_like(wanted), wanted).item() for much in (40, 1))
    assert near < far
    assert len(more) == (loss == "gan")
    if loss == "perceptual":
        assert float(distance(wanted, wanted)) == 0
        again, _ = attack._distance(loss, 5, wanted)
        assert float(again(wanted + 3, wanted)) == float(distance(wanted + 3, wanted))


def test_a_file_of_vgg_16_is_torchvisions(tmp_path):
    """Names and shapes from torchvision itself, of a network that is never filled."""
    with torch.device("meta"):
        names = torchvision.models.vgg16(weights=None).state_dict()
    weights = {k: torch.randn(x.shape) for k, x in names.items() if k in [f"features.{i}.weight" for i in (0, 2, 5, 7)]}
    weights |= {k.replace("weight", "bias"): torch.randn(len(x)) for k, x in weights.items()}
    save_file(weights, tmp_path / "vgg.safetensors")
    words = ("task=restoration", "attack=surrogate", f"attack.vgg={tmp_path}/vgg.safetensors")
    features = spec.build(config(*words).attack, "attack")._features(0)
    assert {f"features.{k}": x.tolist() for k, x in features.state_dict().items()} == {
        k: x.tolist() for k, x in weights.items()
    }
    whole = [type(layer).__name__ for layer in torchvision.models.vgg.make_layers([64, 64, "M", 128, 128])]
    assert [type(layer).__name__ for layer in features] == whole
    assert [type(features[i - 1]).__name__ for i in (3, 8)] == ["Conv2d", "Conv2d"]  # relu1_2 and relu2_2 are read
