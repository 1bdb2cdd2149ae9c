"""`logger=wandb`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import among, checked
from bench.loggers.log import About, Sink, installed


@dataclass(frozen=True)
class Wandb:
    """A run of `project` at Weights & Biases; runs of one configuration, seeds apart, are a group there."""

    project: str
    entity: str | None
    mode: str | None = among("online", "offline")
    folder: str

    def __post_init__(self) -> None:
        installed("wandb")
        checked(self, "logger")

    def open(self, about: Callable[[], About]) -> Sink:
        import wandb

        # It would wait for good for a server that is gone, and ask for a key that nobody gave.
        patience = {"WANDB_FINISH_TIMEOUT": "300", "WANDB_FINISH_TIMEOUT_RAISES": "true"}
        for name, value in {"WANDB_SILENT": "true", **patience}.items():
            os.environ.setdefault(name, value)
        mode = self.mode or os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise PermissionError("no API key: wandb login, WANDB_API_KEY=... or logger.mode=offline")
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        it = about()
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            dir=self.folder,
            name=it.name,
            group=it.tags["config_hash"],
            config={**it.params(), **it.tags},
            tags=[f"{name}:{value}"[:64] for name, value in it.tags.items()],
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
        axes = set()

        def log(group: str, step: int, numbers: dict[str, float], text: str) -> None:
            axis = f"{group}/{'strength' if 'strength' in numbers else 'step'}"
            if axis not in axes:
                axes.add(axis)
                run.define_metric(f"{group}/*", step_metric=axis)
            values = {f"{group}/{name}": value for name, value in numbers.items()}
            run.log({f"{group}/step": step, **values, **({f"{group}/verdict": text} if text else {})})

        def close(status: str, message: str) -> None:
            run.summary.update({"status": status, "message": message})
            run.finish(exit_code=int(status in ("failed", "interrupted")))

        return Sink(log, close)
