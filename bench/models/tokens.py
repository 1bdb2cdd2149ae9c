"""How networks of text are called: tokens int64 [B, T], of which those that are context alone are negative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """What a network of text must fit: tokens it knows, and how many of them it is given at most."""

    tokens: int
    context: int


def context_only(tokens: Tensor) -> Tensor:
    """Tokens as a network is given them where it is not asked for the next one."""
    return -1 - tokens


def read(tokens: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(tokens without signs [B, T], (rows [N], columns [N]) of the positions that are asked)."""
    tokens = tokens.long()
    rows, columns = (tokens >= 0).nonzero(as_tuple=True)
    return torch.where(tokens < 0, -1 - tokens, tokens), (rows, columns)
