"""timm and torchvision classifiers by name; stems and patches for small images."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench import spec
from bench.errors import ConfigError, among, near, within
from bench.models.base import Network, Signature, untagged
from bench.models.heads import HEADS, new_head


@dataclass(frozen=True)
class Model(Network):
    """A network by name.

    source: timm or torchvision; name: as that package lists it. stem: `imagenet` (as published), `small` (3x3 stride 1,
    no pooling; VGG: no 4096-wide layers) or `mid` (residual networks: 3x3 stride 1, then 2x2 max pooling).
    patch_size, window_size: for vision transformers (None: chosen to fit the image). kwargs: passed on to the package's
    constructor. weights: what the package's own trained weights are called (`DEFAULT`; of timm, whose names say it, no
    more than that), fetched where there is a network; a hash covers the name, not the content. None: none.
    """

    source: str = among("timm", "torchvision")
    name: str
    stem: str = among("imagenet", "small", "mid")
    patch_size: int | None = within(1, 4096)
    window_size: int | None = within(1, 4096)
    kwargs: dict[str, Any]
    weights: str | None = spec.later(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and self.checkpoint:
            raise ConfigError("model.weights and model.checkpoint are both weights to start from: give one")
        if self.weights and self.source == "timm" and self.weights != "DEFAULT":
            raise ConfigError(f"model.weights={self.weights}: timm's are DEFAULT; a tag is part of model.name")

    def construct(self, io: Signature) -> nn.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = _timm(self, io) if self.source == "timm" else _torchvision(self, io)
        except OSError as error:  # URLError too: no network, or no such file there
            raise ConfigError(
                f"model {self.name}: its weights cannot be fetched ({error}): model.checkpoint="
            ) from error
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise ConfigError(
                f"model {self.name} cannot be built for {io.image_size}x{io.image_size} images: {why}; "
                "see model.patch_size, model.window_size, model.kwargs and data.image_size"
            ) from error
        if self.stem != "imagenet":
            small_stem(net, self.name)
        if self.stem == "mid":
            if not isinstance(getattr(net, "maxpool", None), nn.Identity):
                raise ConfigError(f"model.stem=mid: {self.name} is no residual network; use model.stem=small")
            net.maxpool = nn.MaxPool2d(2)
        return net

    def heads(self, net: nn.Module, io: Signature) -> frozenset[str]:
        return frozenset(name for name, _ in net.named_children() if name in HEADS)


def _timm(model: Model, io: Signature) -> nn.Module:
    import timm

    hub = model.name.startswith(("hf_hub:", "hf-hub:", "local-dir:"))
    if not hub and model.weights is None:
        untagged(model.name, "model.name", model.checkpoint)
    if not hub and not timm.is_model(model.name):
        raise ConfigError(f"model.name={model.name}: timm has no such model; {near(model.name, timm.list_models())}")
    pretrained = model.weights is not None
    if hub:
        return timm.create_model(model.name, pretrained=pretrained, **{"num_classes": io.num_classes, **model.kwargs})
    kwargs = {"num_classes": io.num_classes} | _fit_image(model, io) | model.kwargs
    if pretrained:
        return timm.create_model(model.name, pretrained=True, **kwargs)
    if mixer := re.match(r"mixer_[sbl](\d+)", model.name):
        return _mixer(model.name, int(mixer[1]), io, kwargs)
    return timm.create_model(model.name, pretrained=False, **kwargs)


def current(name: str) -> str:
    """What timm calls a model now, by its present or a former name. Raises ConfigError for one that was removed."""
    import timm

    renamed = timm.models.get_deprecated_models()
    if name in renamed and renamed[name] is None:
        raise ConfigError(f"model.name={name}: timm has removed this model")
    return renamed.get(name, name)


def _mixer(name: str, usual: int, io: Signature, kwargs: dict[str, Any]) -> nn.Module:
    """An MLP-Mixer. timm's constructor fixes the patch: built for the number of patches, it is given smaller ones."""
    import timm

    size = kwargs.pop("patch_size", usual)
    net = timm.create_model(name, pretrained=False, **kwargs | {"img_size": io.image_size // size * usual})
    net.stem = timm.layers.PatchEmbed(io.image_size, size, embed_dim=net.embed_dim)
    net.init_weights()
    return net


def _fit_image(model: Model, io: Signature) -> dict[str, Any]:
    """Image, patch and window size for the families that fix them; patches leave at least a 4 x 4 grid."""
    import timm

    name = current(model.name)
    cfg = timm.models.get_pretrained_cfg(name)
    kwargs: dict[str, Any] = {}
    if cfg is not None and cfg.fixed_input_size:
        kwargs["img_size"] = io.image_size
    patch = re.search(r"(?:patch|mixer_[sbl])(\d+)", name)
    usual = int(patch.group(1)) if patch else 4
    size = model.patch_size or min(usual, max(2, io.image_size // 4))
    if model.patch_size or (patch and size != usual):
        kwargs["patch_size"] = size
    window = re.search(r"window(\d+)", name)
    if model.window_size:
        kwargs["window_size"] = model.window_size
    elif window:
        grid = io.image_size // size
        kwargs["window_size"] = max(w for w in range(1, int(window.group(1)) + 1) if grid % w == 0)
    return kwargs


def _torchvision(model: Model, io: Signature) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if model.name not in names:
        raise ConfigError(f"model.name={model.name}: torchvision has no such model; {near(model.name, names)}")
    kwargs: dict[str, Any] = {"num_classes": io.num_classes}
    if model.name in ("googlenet", "inception_v3"):
        kwargs |= {"aux_logits": False, "init_weights": True}
    if model.name.startswith("vit_"):
        kwargs["image_size"] = io.image_size
    if model.patch_size:
        kwargs["patch_size"] = model.patch_size
    kwargs |= model.kwargs
    if model.weights is None:
        return torchvision.models.get_model(model.name, weights=None, **kwargs)
    kinds = torchvision.models.get_model_weights(model.name)
    if model.weights != "DEFAULT" and model.weights not in kinds.__members__:
        raise ConfigError(f"model.weights={model.weights}: not known; {near(model.weights, kinds.__members__)}")
    chosen = kinds[model.weights] if model.weights != "DEFAULT" else kinds.DEFAULT
    # Trained weights come with their own number of classes.
    kwargs = {k: v for k, v in kwargs.items() if k not in ("num_classes", "image_size", "aux_logits", "init_weights")}
    net = torchvision.models.get_model(model.name, weights=chosen, **kwargs)
    classes = len(chosen.meta["categories"])
    # torch's generator is seeded: the head that is drawn now is the seed's, as the rest would be.
    return net if classes == io.num_classes else new_head(net, classes, io.num_classes, torch.initial_seed())


def small_stem(net: nn.Module, name: str) -> None:
    """The usual stem for 32x32 input: 3x3, stride 1, no pooling (He et al. 2016, Sec. 4.2), by family."""

    def conv(old: nn.Module, out: int) -> nn.Conv2d:
        first = next(m for m in old.modules() if isinstance(m, nn.Conv2d))
        return nn.Conv2d(first.in_channels, out, 3, stride=1, padding=1, bias=False)

    if hasattr(net, "conv1") and hasattr(net, "maxpool") and hasattr(net, "bn1"):  # residual networks
        net.conv1, net.maxpool = conv(net.conv1, net.bn1.num_features), nn.Identity()
    elif hasattr(net, "conv1") and hasattr(net, "maxpool1"):  # torchvision's GoogLeNet
        net.conv1.conv, net.maxpool1 = conv(net.conv1, net.conv1.bn.num_features), nn.Identity()
    elif isinstance(getattr(net, "features", None), nn.Module) and hasattr(net.features, "pool0"):  # DenseNet
        net.features.conv0 = conv(net.features.conv0, net.features.norm0.num_features)
        net.features.pool0 = nn.Identity()
    elif hasattr(net, "pre_logits") and hasattr(net, "features"):  # timm's VGG
        width = net.pre_logits.fc1.in_channels
        net.pre_logits, net.head.fc = nn.Identity(), nn.Linear(width, net.head.fc.out_features)
    elif hasattr(net, "avgpool") and hasattr(net, "features") and name.startswith("vgg"):  # torchvision's VGG
        last = [m for m in net.features if isinstance(m, nn.Conv2d)][-1]
        classes = net.classifier[-1].out_features
        net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(last.out_channels, classes)
    elif name == "alexnet":
        # 11x11 stride 4 becomes 3x3 stride 2. The last of three poolings, which would leave one pixel of 32x32, goes:
        # the maps are 16, 7 and 3 wide, so that all nine taps of the inner convolutions see pixels. The two hidden
        # layers stay but are a quarter as wide (at 4096 they would be 21 of 23 million weights).
        net.features[0] = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        net.features[12], net.avgpool = nn.Identity(), nn.AdaptiveAvgPool2d(2)
        for i, n in ((1, 1024), (4, 1024), (6, net.classifier[6].out_features)):
            net.classifier[i] = nn.Linear(1024, n)
        for layer in net.modules():  # torch's own start fades over eight layers without a norm: digits stay at 40%
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    elif (first := _striding(net)) is not None:  # MobileNet, EfficientNet, RegNet of either package
        first.stride = (1, 1)
    else:
        raise ConfigError(f"model.stem=small: {name} has no stem to exchange; use model.stem=imagenet")


def _striding(net: nn.Module) -> nn.Conv2d | None:
    """The convolution that a stem begins with, where it is the usual 3x3 of stride 2."""
    part = next((getattr(net, name) for name in ("conv_stem", "stem", "features") if hasattr(net, name)), None)
    first = next((m for m in part.modules() if isinstance(m, nn.Conv2d)), None) if part is not None else None
    return first if first is not None and first.kernel_size == (3, 3) and first.stride == (2, 2) else None
