"""The identity: the victim as it is, so that every table has the row all others are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.types import Attack, Snapshot, Victim


# The underscore because Python keeps the name without it.
@dataclass(frozen=True)
class None_(Attack):
    """Makes no snapshot of its own: the harness measures the victim in every run."""

    needs = ()

    def run(self, victim: Victim, rng: Any, fit: Any) -> Iterator[Snapshot]:
        return iter(())
