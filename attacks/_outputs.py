"""What attacks on outputs share: whom they can be made on, and a network whose outputs are changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.data.pixels import seen
from bench.types import Attack, Victim


class OutputAttack(Attack):
    """Base of attacks that change a victim's pictures, and leave the victim as it is."""

    needs = ("outputs",)

    def skip(self, victim: Victim) -> str | None:
        if victim.method.marks and victim.method.access != "outputs":
            return "the mark is read from weights, which no change of outputs touches"
        return None if victim.task.gives == "pictures" else "the victim gives no pictures"


class Changed(nn.Module):
    """A network whose 8-bit outputs [B, 3, H, W] are changed by a function."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.change = model, change

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.change(seen(self.model(images)))
