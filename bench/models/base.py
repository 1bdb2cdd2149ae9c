"""What every network's configuration shares, and what is done to every network that is built."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench import spec
from bench.errors import ConfigError, UserError, among, checked
from bench.models import anatomy, checkpoints
from bench.models.heads import head_name, same


@dataclass(frozen=True)
class Signature:
    """What a network must fit: classes (0: none), pixels per side, channel statistics in pixel units 0..255.

    patches: gives the covariance [12, 12] of 2x2 patches of normalised training images, or None where there is no such.
    shape: (height, width) of pictures that are no squares.
    """

    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patches: Callable[[], Tensor] | None = None
    shape: tuple[int, int] | None = None

    @property
    def sides(self) -> tuple[int, int]:
        return self.shape or (self.image_size, self.image_size)


INPUTS = among("data", "imagenet", "unit", "raw")
STATISTICS = {  # mean and standard deviation by channel, in pixel units
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "unit": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "raw": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Network:
    """A network by its configuration; each kind is a frozen dataclass that derives from this and has `construct`.

    label: as tables print it (None: name). checkpoint: weights to start from, a file that bench.models.checkpoints
    reads; a head of another size is left freshly initialised. inputs: what the network was trained on: pixels
    normalised by the `data`'s channel statistics, by `imagenet`'s, as fractions of 255 (`unit`) or `raw`.
    """

    gives: ClassVar[str] = "classes"  # what comes out, as tasks call it

    label: str | None
    checkpoint: str | None = spec.file()
    inputs: str = field(default="data", kw_only=True, metadata={**INPUTS.metadata, "later": True, "neutral": "data"})

    def __post_init__(self) -> None:
        checked(self, "model")

    @property
    def title(self) -> str:
        return self.label or getattr(self, "name", spec.kind(self))

    @property
    def multiple(self) -> int:
        """What the sides of a picture have to be multiples of."""
        return 1

    def identity(self) -> dict[str, Any]:
        """What a stage hash covers: the configuration, and the checkpoint by its content, not its place."""
        found = {k: v for k, v in spec.identity(self, "model").items() if k not in ("class", "label")}
        if self.checkpoint and self.checkpoint.endswith(checkpoints.INDEX):  # the shards are its content
            found["checkpoint"] = [spec.sha256(path) for path in checkpoints.files(self.checkpoint)]
        return found

    def note(self) -> str:
        """What is to be said of a checkpoint that is taken otherwise than it is written."""
        if not self.checkpoint:
            return ""
        try:
            found = checkpoints.unwrapped(checkpoints.read(self.checkpoint))
        except UserError:  # `load` says so, where it is needed
            return ""
        return f"model: {self.checkpoint}: {'; '.join(found.said)}" if found.said else ""

    def construct(self, io: Signature) -> nn.Module:
        """The network, initialised by torch's generator, for normalised images. ConfigError for unfit options."""
        raise NotImplementedError

    def head(self, net: nn.Module, io: Signature) -> str:
        """Name of the module that gives the outputs. Raises ConfigError where there is none."""
        return head_name(net, io.num_classes)

    def heads(self, net: nn.Module, io: Signature) -> frozenset[str]:
        """Top-level modules behind the feature extractor, which an attacker exchanges freely: no mark goes there."""
        return frozenset([self.head(net, io).split(".")[0]])

    def build(self, io: Signature, seed: int) -> nn.Module:
        """A freshly initialised (or checkpointed) network on the CPU, in which is noted what it is made of.

        Input: [B, 3, H, W] in 0..255, any dtype; the network normalises by itself. The same seed gives the same
        weights, on any device. Raises ConfigError for unknown names and unfit options.
        """
        torch.manual_seed(seed)
        net = self.construct(io)
        if self.checkpoint:
            load(net, self.checkpoint, self.head(net, io))
        normalising(net, *STATISTICS.get(self.inputs, (io.mean, io.std)))
        images = torch.zeros(2, 3, *io.sides, dtype=torch.uint8)
        try:
            out = anatomy.examine(net, images, self.heads(net, io))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"the model does not take {'x'.join(map(str, io.sides[::-1]))} images ({str(error).splitlines()[0]}); "
                "set data.image_size, model.stem=small or another model"
            ) from error
        if self.gives == "classes" and out.shape != (2, io.num_classes):
            raise ConfigError(f"the model gives outputs of shape {tuple(out.shape[1:])}, not {io.num_classes} logits")
        if self.gives == "maps" and out.shape != (2, io.num_classes, *io.sides):
            shapes = tuple(out.shape[1:]), (io.num_classes, *io.sides)
            raise ConfigError(f"the model gives outputs of shape {shapes[0]}, not {shapes[1]}: logits of each pixel")
        return net


def untagged(name: str, key: str, checkpoint: str | None) -> None:
    """Raises ConfigError for a name with a tag of pretrained weights (resnet18.a1_in1k), which nobody loads, where
    there is no checkpoint either: an untrained network by that name."""
    plain, _, tag = name.partition(".")
    if tag and not checkpoint:
        raise ConfigError(
            f"{key}={name}: weights are not downloaded, it would be trained from scratch: write {key}={plain}, "
            "or give their file, model.checkpoint=FILE.safetensors"
        )


def normalising(net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """`net` with the normalisation of its input by channel added, in place."""
    net.register_buffer("input_mean", torch.tensor(mean).view(1, -1, 1, 1))
    net.register_buffer("input_std", torch.tensor(std).view(1, -1, 1, 1))
    net.register_forward_pre_hook(_normalise)
    return net


def _normalise(net: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((args[0].to(net.input_mean.dtype) - net.input_mean) / net.input_std, *args[1:])


def load(net: nn.Module, path: str, head: str) -> None:
    """Weights from a file (bench.models.checkpoints) into `net`; what wrapped the network when they were saved is left
    out of their names, and heads may differ in size, nothing else may. Raises ConfigError."""
    own = net.state_dict()
    state = fitting(path, own).tensors
    state = {k: v for k, v in state.items() if k in own or not k.startswith("input_")}
    for key in (f"{name}.{part}" for name in same(net, head) for part in ("weight", "bias")):
        if key in state and key in own and state[key].shape != own[key].shape:
            state[key] = own[key]
    # Of tensors that are one, files hold the first.
    held = {(own[k].data_ptr(), own[k].shape): k for k in state if k in own}
    state |= {k: state[held[at]] for k, v in own.items() if k not in state and (at := (v.data_ptr(), v.shape)) in held}
    wrong = [k for k in own if k not in state] + [k for k in state if k not in own]
    wrong += [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise ConfigError(f"model.checkpoint={path} does not fit this model: {len(wrong)} tensors, first {wrong[0]}")
    net.load_state_dict(state)


def fitting(path: str, own: Collection[str]) -> checkpoints.Weights:
    """The weights in a file under a network's `own` names, as far as they are there. Raises ConfigError."""
    try:
        found = checkpoints.unwrapped(checkpoints.read(path), own)
    except UserError as error:
        raise ConfigError(f"model.checkpoint={error}") from error
    # A network that is parametrised itself has such names; one that is not has what they stand for.
    return found if all(name in own for name in found.tensors) else checkpoints.folded(found)


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Onto the device; in channels_last where that is quicker: convolutional networks on CUDA, some on a CPU."""
    if anatomy.convolutional(net) if device.type == "cuda" else anatomy.of(net).channels_last:
        return net.to(device, memory_format=torch.channels_last)
    return net.to(device)
