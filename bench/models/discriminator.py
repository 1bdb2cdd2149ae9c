"""A patch discriminator, for whoever trains pictures to look like others."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Discriminator(nn.Module):
    """D: tells patches of marked pictures from those of unmarked ones (pix2pix), least squares."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.InstanceNorm2d(2 * width, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures / 127.5 - 1)

    def losses(self, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """(the discriminator's loss, what `made` loses by it): the first moves D alone, the second `made` alone."""
        told = (self(real) - 1).square().mean() + self(made.detach()).square().mean()
        frozen = {name: p.detach() for name, p in self.named_parameters()}
        return told, (torch.func.functional_call(self, frozen, (made,)) - 1).square().mean()
