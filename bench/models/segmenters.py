"""Networks that give a class for each pixel: segmentation_models_pytorch's and torchvision's by name, a small U-Net.

`Maps` holds a package's parts under their own names and gives logits [B, classes, H, W] for pictures of any sides.
Weights are never downloaded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from bench.errors import ConfigError, among, near
from bench.models.base import Network, Signature, untagged
from bench.models.restorers import Unet, started

AUXILIARY = ("aux_classifier", "classification_head")  # trained beside the maps; nothing that is used depends on them


@dataclass(frozen=True)
class Segmenter(Network):
    """A segmentation network by name.

    source: smp (segmentation_models_pytorch: `name` an architecture of its, over `encoder`, any timm network as
    tu-NAME), torchvision, or own: `unet`, with width and depth in kwargs. kwargs: passed on to the constructor.
    """

    gives = "maps"

    source: str = among("smp", "torchvision", "own")
    name: str
    encoder: str | None
    kwargs: dict[str, Any]

    def construct(self, io: Signature) -> nn.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return {"smp": _smp, "torchvision": _torchvision, "own": _own}[self.source](self, io)
        except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            why = str(error).strip("\"' \n").splitlines()
            raise ConfigError(
                f"model {self.name}{f' over {self.encoder}' if self.encoder else ''} cannot be built: "
                f"{why[-1] if why else type(error).__name__}; see model.encoder and model.kwargs"
            ) from error

    def head(self, net: nn.Module, io: Signature) -> str:
        return max(self.heads(net, io))

    def heads(self, net: nn.Module, io: Signature) -> frozenset[str]:
        """The layers that give the logits. Torchvision's `classifier` is more than that: a DeepLab's whole pyramid."""
        found = [
            f"{part}.{name}" if name else part
            for part in ("head", "segmentation_head", "classifier")
            for name, layer in getattr(net, part, nn.Identity()).named_modules()
            if isinstance(layer, nn.Conv2d) and layer.out_channels == io.num_classes
        ]
        if not found:
            raise ConfigError(f"the model has no layer with {io.num_classes} outputs to serve as its head")
        # A layer of the pyramid may have as many channels as there are classes.
        return frozenset(name for name in found if name.endswith("_classifier")) or frozenset(found[-1:])


class Maps(nn.Module):
    """The parts of a network, called one after the other; sides are padded to a multiple and maps cut to them."""

    def __init__(self, parts: dict[str, nn.Module], multiple: int):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.multiple = multiple

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        down, right = -height % self.multiple, -width % self.multiple
        padded = functional.pad(images, (0, right, 0, down)) if down or right else images
        logits = self.maps(padded)
        if logits.shape[2:] != padded.shape[2:]:
            logits = functional.interpolate(logits, padded.shape[2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width] if down or right else logits

    def maps(self, images: Tensor) -> Tensor:
        """Logits, of any size in proportion to the images'."""
        raise NotImplementedError


class Smp(Maps):
    def maps(self, images: Tensor) -> Tensor:
        return self.segmentation_head(self.decoder(self.encoder(images)))


class Torchvision(Maps):
    def maps(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        # LR-ASPP reads two maps; else `aux` is for a head that is left out.
        return self.classifier(features.get("out", features))


class Own(Maps):
    maps = Unet.change


def _smp(model: Segmenter, io: Signature) -> nn.Module:
    import segmentation_models_pytorch as smp

    known = [each.__name__.lower() for each in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    if model.name.lower() not in known:
        raise ConfigError(f"model.name={model.name}: segmentation_models_pytorch has none; {near(model.name, known)}")
    untagged(model.encoder or "", "model.encoder", model.checkpoint)
    kwargs = {"in_channels": 3, "classes": io.num_classes, **model.kwargs, "encoder_weights": None}
    net = smp.create_model(model.name, encoder_name=model.encoder or "tu-resnet10t", **kwargs)
    return Smp(_parts(net), net.encoder.output_stride)


def _torchvision(model: Segmenter, io: Signature) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models.segmentation)
    if model.name not in names:
        raise ConfigError(
            f"model.name={model.name}: torchvision has no such segmentation model; {near(model.name, names)}"
        )
    kwargs = {"num_classes": io.num_classes, **model.kwargs, "weights": None, "weights_backbone": None}
    return Torchvision(_parts(torchvision.models.get_model(model.name, **kwargs)), 1)


def _own(model: Segmenter, io: Signature) -> nn.Module:
    if model.name != "unet":
        raise ConfigError(f"model.name={model.name}: not known; valid: unet")
    net = Unet(**model.kwargs)
    parts = {**dict(net.named_children()), "head": nn.Conv2d(net.head.in_channels, io.num_classes, 1)}
    return started(Own(parts, 2 ** len(net.decoder)))


def _parts(net: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in net.named_children() if name not in AUXILIARY}
