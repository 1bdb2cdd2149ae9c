"""What attacks share that train students on what the victim answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench import spec
from bench.errors import ConfigError, within
from bench.models.base import Network
from bench.types import Fit, Snapshot, TunedAttack, Victim


@dataclass(frozen=True)
class StudentAttack(TunedAttack):
    """Students: the victim's published architecture, freshly initialised, without what the method adds to it; and
    `student`, a conf/model node. A snapshot after each count of epochs in `snapshots`. A student of another
    architecture has no marked weight to read, which counts as half an error a bit.
    """

    needs_data = True

    snapshots: list[int] = within(1, 10**6)
    same: bool
    student: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.same and self.student is None:
            raise ConfigError("attack.same=false leaves no student: model@attack.student=NAME")
        if self.student is not None:
            self.model()

    def model(self) -> Network:
        """The other architecture. Raises ConfigError for a node that is none."""
        if not isinstance(self.student, dict):
            raise ConfigError(f"attack.student takes a model: model@attack.student={self.student}")
        return spec.build(self.student, "attack.student")

    def learned(
        self, victim: Victim, seed: int, fit: Fit, loss: Callable[[nn.Module, Any], Tensor]
    ) -> Iterator[Snapshot]:
        """The students' snapshots, trained on a loss of (student, batch)."""
        # Both first: one that cannot be built should not cost the other's training.
        students = [("same", victim.fresh(seed))] if self.same else []
        if self.student is not None:
            students.append((self.model().title, victim.task.build(self.model(), seed)))
        for name, model in students:
            for epoch in fit.epochs(model, victim.task, loss=loss, epochs=max(self.snapshots), **self.tuning):
                if epoch in self.snapshots:
                    yield Snapshot(f"epoch/{name}", epoch, model, continues=epoch > min(self.snapshots))
