"""timm and torchvision classifiers by name; normalisation inside the model; stems and patches for small images."""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench import spec
from bench.cache import sha256
from bench.types import ConfigError


@dataclass(frozen=True)
class Signature:
    """What a classification model must fit: classes, pixels per side, channel statistics in pixel units 0..255."""

    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """A network by name.

    source: timm or torchvision; name: as that package lists it; label: as tables print it (None: name).
    stem: `imagenet` (as published) or `small` (3x3 stride 1, no pooling; VGG: no 4096-wide layers).
    patch_size, window_size: for vision transformers (None: chosen to fit the image).
    checkpoint: weights to start from, a safetensors file; a head of another size is left freshly initialised.
    kwargs: passed on to the package's constructor.
    """

    source: str
    name: str
    label: str | None
    stem: str
    patch_size: int | None
    window_size: int | None
    checkpoint: str | None
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        spec.choice("model.source", self.source, ("timm", "torchvision"))
        spec.choice("model.stem", self.stem, ("imagenet", "small"))
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise ConfigError(f"model.checkpoint={self.checkpoint}: no such file")

    @property
    def title(self) -> str:
        return self.label or self.name

    def identity(self) -> dict[str, Any]:
        """What a stage hash covers: the configuration, and the checkpoint by its content, not its place."""
        facts = {k: v for k, v in asdict(self).items() if k not in ("label", "checkpoint")}
        return facts | {"checkpoint": sha256(Path(self.checkpoint)) if self.checkpoint else None}


def build(model: Model, io: Signature, seed: int) -> nn.Module:
    """A freshly initialised (or checkpointed) network on the CPU that takes uint8 images and gives logits.

    Input: [B, 3, H, W] in 0..255, any dtype; the network normalises by itself. The same seed gives the same weights,
    on any device. Raises ConfigError for unknown names and unfit options.
    """
    torch.manual_seed(seed)
    net = _timm(model, io) if model.source == "timm" else _torchvision(model, io)
    if model.stem == "small":
        _small_stem(net, model.name)
    if model.checkpoint:
        load(net, model.checkpoint, head_name(net, io.num_classes))
    return normalising(net, io.mean, io.std)


def normalising(net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """`net` with the normalisation of its input by channel added, in place."""
    net.register_buffer("input_mean", torch.tensor(mean).view(1, -1, 1, 1))
    net.register_buffer("input_std", torch.tensor(std).view(1, -1, 1, 1))
    net.register_forward_pre_hook(_normalise)
    return net


def _normalise(net: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((args[0].to(net.input_mean.dtype) - net.input_mean) / net.input_std, *args[1:])


def _timm(model: Model, io: Signature) -> nn.Module:
    import timm

    if not timm.is_model(model.name):
        raise ConfigError(
            f"model.name={model.name}: timm has no such model; {spec.near(model.name, timm.list_models())}"
        )
    kwargs = {"num_classes": io.num_classes} | _fit_image(model, io) | model.kwargs
    if mixer := re.match(r"mixer_[sbl](\d+)", model.name):
        return _construct(model, lambda: _mixer(model.name, int(mixer[1]), io, kwargs), io)
    return _construct(model, lambda: timm.create_model(model.name, pretrained=False, **kwargs), io)


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

    cfg = timm.models.get_pretrained_cfg(model.name)
    kwargs: dict[str, Any] = {}
    if cfg is not None and cfg.fixed_input_size:
        kwargs["img_size"] = io.image_size
    patch = re.search(r"(?:patch|mixer_[sbl])(\d+)", model.name)
    usual = int(patch.group(1)) if patch else 4
    size = model.patch_size or min(usual, max(2, io.image_size // 4))
    if model.patch_size or (patch and size != usual):
        kwargs["patch_size"] = size
    window = re.search(r"window(\d+)", model.name)
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
        raise ConfigError(f"model.name={model.name}: torchvision has no such model; {spec.near(model.name, names)}")
    kwargs: dict[str, Any] = {"num_classes": io.num_classes}
    if model.name in ("googlenet", "inception_v3"):
        kwargs |= {"aux_logits": False, "init_weights": True}
    if model.name.startswith("vit_"):
        kwargs["image_size"] = io.image_size
    if model.patch_size:
        kwargs["patch_size"] = model.patch_size
    kwargs |= model.kwargs
    return _construct(model, lambda: torchvision.models.get_model(model.name, weights=None, **kwargs), io)


def _construct(model: Model, make: Any, io: Signature) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model {model.name} cannot be built for {io.image_size}x{io.image_size} images: {why}; "
            "see model.patch_size, model.window_size, model.kwargs and data.image_size"
        ) from error


def check_forward(net: nn.Module, io: Signature) -> None:
    """One forward pass, so that an image too small for the network is one line and not a traceback an epoch later."""
    device = next(net.parameters()).device
    try:
        out = probe(net, torch.zeros(2, 3, io.image_size, io.image_size, dtype=torch.uint8, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"the model does not take {io.image_size}x{io.image_size} images ({str(error).splitlines()[0]}); "
            "set data.image_size, model.stem=small or another model"
        ) from error
    if out.shape != (2, io.num_classes):
        raise ConfigError(f"the model gives outputs of shape {tuple(out.shape[1:])}, not {io.num_classes} logits")


def probe(net: nn.Module, images: Tensor) -> Tensor:
    """What `net` gives for images [B, 3, H, W], and two notes on its convolutions at that size.

    In `net.dead` the convolutions some of whose taps see nothing but padding: a 3x3 kernel on a
    1x1 map has eight. The function does not depend on them, training does not move them. And in `net.prefers_last`
    whether the CPU trains it quicker in channels_last (benchmarks/layout.py): where most of what convolutions read and
    write passes through 1x1 or grouped ones (1.1 to 1.6 times), unless the weights of all outweigh a batch's maps
    (0.65 times); with full 3x3 kernels it is slower or the same.
    """
    was_training = net.training
    dead: set[str] = set()
    maps, weights = {True: 0, False: 0}, 0

    def note(name: str, conv: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal weights
        maps[conv.kernel_size == (1, 1) or conv.groups > 1] += args[0][0].numel() + out[0].numel()
        weights += conv.weight.numel()
        if not all(_taps_see_pixels(conv, axis, args[0].shape[2 + axis], out.shape[2 + axis]) for axis in (0, 1)):
            dead.add(f"{name}.weight")

    hooks = [
        m.register_forward_hook(partial(note, name)) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            out = net.eval()(images)
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    net.dead, net.prefers_last = frozenset(dead), maps[True] > maps[False] and 64 * sum(maps.values()) > weights
    return out


def _taps_see_pixels(conv: nn.Conv2d, axis: int, size: int, positions: int) -> bool:
    """Whether each tap along an axis falls on the map of `size`, and not on padding, at one of the output positions."""
    if conv.padding_mode != "zeros":
        return True
    given = 0 if isinstance(conv.padding, str) else conv.padding[axis]  # "same": even on both sides, or nearly
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    given = reach // 2 if conv.padding == "same" else given
    starts = range(-given, -given + conv.stride[axis] * positions, conv.stride[axis])
    return all(any(0 <= at + tap < size for at in starts) for tap in range(0, reach + 1, conv.dilation[axis]))


def _small_stem(net: nn.Module, name: str) -> None:
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


def head_name(net: nn.Module, num_classes: int) -> str:
    """Name of the module that gives the logits: the last linear or convolution with num_classes outputs.

    Raises ConfigError where there is none.
    """
    found = [
        name
        for name, module in net.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes)
    ]
    if not found:
        raise ConfigError(f"the model has no layer with {num_classes} outputs to serve as its head")
    return found[-1]


def new_head(net: nn.Module, old_classes: int, new_classes: int, seed: int) -> nn.Module:
    """Exchange the head, in place, for a freshly initialised one with new_classes outputs."""
    torch.manual_seed(seed)
    name = head_name(net, old_classes)
    old = net.get_submodule(name)
    options = {"bias": old.bias is not None, "device": old.weight.device}
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, new_classes, **options)
    else:
        new = nn.Conv2d(old.in_channels, new_classes, old.kernel_size, old.stride, old.padding, **options)
    net.set_submodule(name, new)
    return net


def load(net: nn.Module, path: str, head: str) -> None:
    """Weights from a safetensors file into `net`; the head may differ in size, nothing else may. Raises ConfigError."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model.checkpoint={path} is no safetensors file: {error}") from error
    own = net.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith("input_")}
    for key in (f"{head}.weight", f"{head}.bias"):
        if key in state and key in own and state[key].shape != own[key].shape:
            state[key] = own[key]
    wrong = [k for k in own if k not in state] + [k for k in state if k not in own]
    wrong += [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise ConfigError(f"model.checkpoint={path} does not fit this model: {len(wrong)} tensors, first {wrong[0]}")
    net.load_state_dict(state)


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Onto the device; in channels_last where that is quicker: convolutional networks on CUDA, some on a CPU."""
    convolutional = any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in net.modules())
    if convolutional if device.type == "cuda" else getattr(net, "prefers_last", False):
        return net.to(device, memory_format=torch.channels_last)
    return net.to(device)
