"""Image-to-image networks, small and plain: U-Net, DnCNN and a residual network, each by its paper's name.

All give the input plus what their layers say of it, in pixel units 0..255: `head`, the last convolution, starts at
zero, so that an untrained network leaves a picture as it is. Written here, because the packages that have them bring an
encoder for classification (segmentation_models_pytorch) or a framework (MONAI, deepinv, diffusers).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.errors import among, at_least, within
from bench.models.base import Network, Signature


@dataclass(frozen=True)
class Restorer(Network):
    """An image-to-image network by name.

    name: unet, dncnn or resnet_ir. width: channels of the first layer. depth: halvings of the U-Net, convolutions of
    DnCNN, blocks of the residual network.
    """

    gives = "pictures"

    name: str = among("unet", "dncnn", "resnet_ir")
    width: int = within(1)
    depth: int = within(1, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model.depth", self.depth, 3 if self.name == "dncnn" else 1)

    @property
    def multiple(self) -> int:
        return {"unet": 2**self.depth, "dncnn": 1, "resnet_ir": 4}[self.name]

    def construct(self, io: Signature) -> nn.Module:
        net = started(NETWORKS[self.name](self.width, self.depth))
        net.register_forward_hook(lambda net, images, out: out * net.input_std + net.input_mean)
        return net

    def head(self, net: nn.Module, io: Signature) -> str:
        return "head"


def started(net: nn.Module) -> nn.Module:
    """`net` with He's initialisation, in place; its `head` at zero, so that what it adds to its input is nothing."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.zeros_(net.head.weight)
    return net


def _layers(inside: int, outside: int, count: int = 1) -> nn.Sequential:
    """`count` times convolution, batch normalisation, ReLU."""
    parts: list[nn.Module] = []
    for _ in range(count):
        parts += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
        inside = outside
    return nn.Sequential(*parts)


class Unet(nn.Module):
    """Ronneberger, Fischer, Brox (MICCAI 2015): two convolutions a level, max pooling down, skips across.

    Not as there: padded convolutions with batch normalisation, nearest-neighbour upsampling in place of transposed
    convolutions, the input added to the output, channels doubled up to eightfold only.
    """

    def __init__(self, width: int, depth: int, more: int = 0):
        super().__init__()
        channels = [width * min(2**i, 8) for i in range(depth + 1)]
        pairs = list(pairwise(channels))
        self.encoder = nn.ModuleList(
            [_layers(3 + more, width, 2), *(_layers(above, below, 2) for above, below in pairs)]
        )
        self.decoder = nn.ModuleList([_layers(above + below, above, 2) for above, below in reversed(pairs)])
        self.head = nn.Conv2d(width, 3, 3, padding=1)
        self.down, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.change(images)

    def change(self, inputs: Tensor) -> Tensor:
        """What is added to the pictures, [B, 3, H, W], given them and `more` channels beside them."""
        x, skips = self.encoder[0](inputs), []
        for layers in self.encoder[1:]:
            skips.append(x)
            x = layers(self.down(x))
        for layers in self.decoder:
            x = layers(torch.cat([skips.pop(), self.up(x)], 1))
        return self.head(x)


class Dncnn(nn.Module):
    """Zhang, Zuo, Chen, Meng, Zhang: Beyond a Gaussian denoiser (TIP 2017): plain 3x3 convolutions that give the noise.

    `depth` of them with the output layer, the first without normalisation.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True))
        self.features = nn.Sequential(first, *(_layers(width, width) for _ in range(depth - 2)))
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.head(self.features(images))


class Block(nn.Module):
    """Two convolutions around which the input is passed; nothing after the sum (Johnson et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        last = (nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.layers = nn.Sequential(_layers(channels, channels), *last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResnetIr(nn.Module):
    """Johnson, Alahi, Fei-Fei: Perceptual losses for real-time style transfer (ECCV 2016).

    Two halvings, `depth` residual blocks, two doublings (with 9 blocks what pix2pix calls Res9).
    Not as there: 3x3 convolutions at both ends, nearest-neighbour upsampling, the input added to the output.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.stem = _layers(3, width)
        self.down = nn.ModuleList([_layers(width, 2 * width), _layers(2 * width, 4 * width)])
        for layers in self.down:
            layers[0].stride = (2, 2)
        self.blocks = nn.Sequential(*(Block(4 * width) for _ in range(depth)))
        self.up = nn.ModuleList([_layers(4 * width, 2 * width), _layers(2 * width, width)])
        self.head = nn.Conv2d(width, 3, 3, padding=1)
        self.larger = nn.Upsample(scale_factor=2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for layers in self.down:
            x = layers(x)
        x = self.blocks(x)
        for layers in self.up:
            x = layers(self.larger(x))
        return images + self.head(x)


NETWORKS: dict[str, type[nn.Module]] = {"unet": Unet, "dncnn": Dncnn, "resnet_ir": ResnetIr}
