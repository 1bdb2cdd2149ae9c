"""The small convolutional network of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import ConfigError, within
from bench.models.base import Network, Signature

EPSILON = 5e-4  # added to the patches' variances before their inverse roots are taken (Sec. 3.2)


@dataclass(frozen=True)
class Cifarnet(Network):
    """The network of arXiv 2404.00498, Sec. 3: 2.0 M weights at the paper's widths, [64, 256, 256].

    A frozen 2x2 convolution that whitens patches of the training images, each eigenvector with both signs (Sec. 3.2);
    three blocks of convolution, 2x2 max pooling, normalisation, GELU, convolution, normalisation, GELU; max pooling of
    what is left (3x3 of 32x32); a linear head without bias, its logits divided by 9. Convolutions begin as the identity
    on their first channels (Dirac, Sec. 3.3). Normalisation has no scales, only biases.

    Not as there: the first convolution has no bias, which is trained for three epochs there; running statistics have
    torch's momentum, .1, where the paper's .4 goes with its Lookahead.
    """

    name = "cifarnet"

    widths: list[int] = within(24, 65536, repeated=True)
    scale: float = within(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) != 3:
            raise ConfigError(f"model.widths={self.widths}: three numbers of channels")

    def construct(self, io: Signature) -> nn.Module:
        if io.patches is None:
            raise ConfigError("model=cifarnet whitens patches of training images: it is for task=classification")
        return Net(self.widths, self.scale, io.num_classes, whitening(io.patches()))


class Net(nn.Module):
    """Normalised images [B, 3, H, W] to logits [B, classes]; whitening [24, 3, 2, 2] are the first layer's weights."""

    def __init__(self, widths: list[int], scale: float, classes: int, whitening: Tensor):
        super().__init__()
        self.whiten = frozen(nn.Conv2d(3, len(whitening), 2, bias=False), "weight")
        self.whiten.weight.copy_(whitening)
        inside = [len(whitening), *widths[:-1]]
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in zip(inside, widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(functional.gelu(self.whiten(images)))
        return self.head(functional.max_pool2d(x, x.shape[2:]).flatten(1)) * self.scale


class Block(nn.Module):
    """Two convolutions, each with normalisation and GELU, the first with a 2x2 max pooling."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.conv1, self.conv2 = identity(inside, outside), identity(outside, outside)
        self.norm1, self.norm2 = (frozen(nn.BatchNorm2d(outside, eps=1e-12), "weight") for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(x), 2)))
        return functional.gelu(self.norm2(self.conv2(x)))


def identity(inside: int, outside: int) -> nn.Conv2d:
    """A 3x3 convolution that passes its inputs on; further outputs start as torch has them."""
    conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inside])
    return conv


def frozen(layer: nn.Module, name: str) -> nn.Module:
    """A parameter made a buffer, in place: no training moves it, the owner's or an attacker's."""
    value = getattr(layer, name).detach().clone()
    delattr(layer, name)
    layer.register_buffer(name, value)
    return layer


def whitening(covariance: Tensor) -> Tensor:
    """Filters [24, 3, 2, 2] whose answers to patches of that covariance [12, 12] have unit variance and no correlation,
    each of the 12 with both signs, so that nothing is lost in the nonlinearity behind."""
    variances, vectors = torch.linalg.eigh(covariance.double())
    # An eigenvector has no sign: the same one on every machine.
    vectors = vectors * vectors.sum(0).sign().where(vectors.sum(0) != 0, 1.0)
    filters = (vectors / (variances.clamp_min(0) + EPSILON).sqrt()).T.reshape(12, 3, 2, 2).float()
    return torch.cat([filters, -filters])
