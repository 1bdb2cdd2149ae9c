"""No watermark: the host itself, as the baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.types import Method


# The underscore because Python keeps the name without it.
@dataclass(frozen=True)
class None_(Method):
    """Carries no message; its rows have utility only."""

    marks = False

    def keygen(self, host: Any, rng: Any, task: Any) -> None:
        return None
