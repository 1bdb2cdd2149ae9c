"""Networks by name, their stems, patches, heads and checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from bench import models, spec
from bench.cli.usage import options
from bench.errors import ConfigError
from bench.models import base, heads, weights
from tests.helpers import config

IO = base.Signature(10, 32, (128.0, 100.0, 90.0), (60.0, 50.0, 40.0))


def model(*words: str) -> models.Model:
    return spec.build(config(*words).model, "model")


# A preset's carrier of 16,384 weights or more: each an inner convolution or linear layer.
PRESETS = {
    "alexnet": "features.10.weight",
    "coatnet_pico": "stages.3.blocks.0.mlp.fc1.weight",
    "convnext_atto": "stages.3.blocks.0.mlp.fc1.weight",
    "deit_tiny": "blocks.11.mlp.fc1.weight",
    "densenet121": "features.denseblock4.denselayer16.conv1.weight",
    "efficientnet_b0": "blocks.6.0.conv_pwl.weight",
    "googlenet": "inception4e.branch2.1.conv.weight",
    "mixer_small": "blocks.7.mlp_channels.fc1.weight",
    "mobilenetv3_large": "blocks.6.0.conv.weight",
    "mobilenetv3_small": "blocks.5.0.conv.weight",
    "regnetx_002": "s4.b1.conv3.conv.weight",
    "resnet18": "layer3.0.conv2.weight",
    "resnet18_cifar": "layer4.0.conv2.weight",
    "resnet18_mid": "layer4.0.conv2.weight",
    "resnet34": "layer3.0.conv2.weight",
    "swin_tiny": "layers.3.blocks.0.mlp.fc1.weight",
    "swinv2_tiny": "layers.3.blocks.0.mlp.fc1.weight",
    "vgg13_bn": "features.31.weight",
    "vgg16_bn": "features.40.weight",
    "vit_tiny": "blocks.11.mlp.fc1.weight",
    "wide_resnet50_2": "layer3.0.conv2.weight",
    "wrn_10_4": "layer3.0.conv2.weight",
}


@pytest.mark.parametrize(
    ("words", "carrier"),
    [
        *(([f"model={name}"], carrier) for name, carrier in PRESETS.items()),
        (["model=resnet18", "model.stem=small"], "layer4.0.conv2.weight"),
        (["model=alexnet", "model.stem=imagenet", "data.image_size=64"], "features.10.weight"),
        (["model=mixer_small", "model.patch_size=4"], "blocks.7.mlp_channels.fc1.weight"),
        (["model=timm", "model.name=mixer_s32_224", "data.image_size=224"], "blocks.7.mlp_channels.fc1.weight"),
        (["model=timm", "model.name=regnetx_002", "model.stem=small"], None),
        (["model=torchvision", "model.name=squeezenet1_1"], None),
        (["model=torchvision", "model.name=densenet121", "model.stem=small"], None),
        (["model=googlenet", "model.stem=small"], "inception5b.branch2.1.conv.weight"),
        (["model=torchvision", "model.name=mobilenet_v3_small", "model.stem=small"], None),
        (["model=torchvision", "model.name=vgg11_bn", "model.stem=small"], None),
        (["model=torchvision", "model.name=regnet_x_400mf", "model.stem=small"], None),
    ],
)
def test_networks_build_run_and_offer_a_carrier(words, carrier):
    cfg = config(*words)
    io = replace(IO, image_size=cfg.data.image_size)
    net = spec.build(cfg.model, "model").build(io, 0).eval()
    assert heads.head_name(net, 10).split(".")[0] in ("fc", "head", "heads", "classifier")
    chosen = weights.choose(net, None, torch.Tensor.numel, 16_384, "weights")
    assert chosen in weights.candidates(net)
    assert chosen.split(".")[0] not in heads.HEADS
    assert carrier in (None, chosen)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small", "convnext_atto"])
def test_dead_convolutions_are_those_with_taps_that_get_no_gradient(name):
    net = model(f"model={name}").build(IO, 0)
    for module in net.modules():  # nothing else may stop a gradient
        if isinstance(module, (nn.ReLU, nn.Hardswish, nn.Hardsigmoid)):
            module.__class__ = nn.Tanh
    for p in net.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1.0, 0.1)
    net.train()(torch.rand(4, 3, 32, 32) * 255).square().sum().backward()
    convolutions = {k: m.weight for k, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    still = {f"{k}.weight" for k, w in convolutions.items() if (w.grad.abs().sum((0, 1)) == 0).any()}
    assert net.anatomy.dead == still
    assert (name == "resnet18") == ("layer4.1.conv1.weight" in still)
    assert not still & set(weights.candidates(net))


def test_every_preset_is_built_above():
    classifiers = [
        name for name in options("model") if spec.target(config(f"model={name}").model, "model") is models.Model
    ]
    assert sorted([*PRESETS, "timm", "torchvision"]) == sorted(classifiers)


def test_a_mixer_gets_patches_that_fit():
    nets = {size: model("model=mixer_small", f"model.patch_size={size}").build(IO, 0) for size in ("null", "4")}
    assert [net.stem.proj.kernel_size for net in nets.values()] == [(8, 8), (4, 4)]
    assert [net.blocks[0].mlp_tokens.fc1.in_features for net in nets.values()] == [16, 64]


def test_a_small_alexnet_starts_with_a_signal():
    """Torch's own start fades to 1/100 over eight layers; He's keeps the images' differences."""
    net = model("model=alexnet").build(IO, 0).eval()
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    assert net(images).std(0).mean() > 0.05


def test_normalisation_is_inside_and_linear_in_pixels():
    net = model("model=timm", "model.name=test_resnet").build(IO, 0).eval()
    seen = []
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    a, b = net(images), net(images.float())
    torch.testing.assert_close(a, b)
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    net(images)
    expected = (images[:, 1].float() - 100.0) / 50.0
    torch.testing.assert_close(seen[-1][:, 1], expected)


def test_small_stem_keeps_the_resolution():
    net = model("model=resnet18", "model.stem=small").build(IO, 0)
    shapes = []
    net.layer1.register_forward_hook(lambda m, args, out: shapes.append(out.shape[-1]))
    net.eval()(torch.zeros(1, 3, 32, 32))
    assert shapes == [32]


def test_the_seed_fixes_the_weights_whatever_was_drawn_before():
    spec_ = model("model=timm", "model.name=test_vit")
    a = spec_.build(IO, 3).state_dict()
    torch.rand(7)
    b, c = spec_.build(IO, 3).state_dict(), spec_.build(IO, 4).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize(("name", "last"), [("regnetx_002", True), ("resnet18", False), ("wide_resnet50_2", False)])
def test_layout_on_a_cpu_is_what_was_measured_and_changes_no_output(name, last):
    net = model(f"model={name}").build(IO, 0)
    assert net.anatomy.channels_last is last
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    plain = net.eval()(images)
    placed = base.to_device(net, torch.device("cpu"))
    inner = next(m.weight for m in placed.modules() if isinstance(m, nn.Conv2d) and min(m.weight.shape) > 1)
    assert inner.is_contiguous(memory_format=torch.channels_last) is last
    torch.testing.assert_close(placed(images), plain, rtol=1e-4, atol=1e-4)


def test_checkpoint_loads_all_but_a_head_of_another_size(tmp_path):
    other = base.Signature(7, 32, IO.mean, IO.std)
    path = tmp_path / "w.safetensors"
    source = model("model=timm", "model.name=test_resnet").build(other, 5)
    save_model(source, str(path))
    words = ["model=timm", "model.name=test_resnet", f"model.checkpoint={path}"]
    net = model(*words).build(IO, 0)
    fresh = model(*words[:2]).build(IO, 0)
    head = heads.head_name(net, 10)
    for k, v in net.state_dict().items():
        if not k.startswith("input_"):
            assert torch.equal(v, (fresh if k.startswith(head) else source).state_dict()[k]), k
    # where the file lies does not matter, what is in it does
    assert "checkpoint" in model(*words).identity()
    copy_ = tmp_path / "elsewhere.safetensors"
    copy_.write_bytes(path.read_bytes())
    assert model(*words[:2], f"model.checkpoint={copy_}").identity() == model(*words).identity()
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="does not fit this model"):
        model(*words).build(IO, 0)
    path.write_bytes(b"junk")
    with pytest.raises(ConfigError, match="no safetensors file"):
        model(*words).build(IO, 0)


def test_images_too_small_are_one_line():
    with pytest.raises(ConfigError, match="does not take 32x32 images"):
        model("model=torchvision", "model.name=alexnet").build(IO, 0)
