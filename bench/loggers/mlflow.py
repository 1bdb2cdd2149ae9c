"""`logger=mlflow`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.errors import ConfigError
from bench.loggers.log import About, Sink, installed


@dataclass(frozen=True)
class MLflow:
    """A run of `experiment` at a tracking server or database (`uri`, else MLFLOW_TRACKING_URI), else in `folder`."""

    uri: str | None
    folder: str
    experiment: str

    def __post_init__(self) -> None:
        installed("mlflow")
        if self.uri and urlsplit(self.uri).password:
            raise ConfigError("logger.uri holds a password, and run files record it: set MLFLOW_TRACKING_URI instead")

    def open(self, about: Callable[[], About]) -> Sink:
        # Its own patience with a server that is gone is minutes, of a run's time.
        patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
        for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", **patience}.items():
            os.environ.setdefault(name, value)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow wants databases, which its small client lacks; files are there for good, and need no server.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = Path(self.folder).resolve().as_uri()
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        client, it = MlflowClient(tracking_uri=uri), about()
        run = client.create_run(self._experiment(client), tags=it.tags, run_name=it.name).info.run_id
        params = [Param(_name(name), str(value)) for name, value in it.params().items()]
        for start in range(0, len(params), 100):  # a batch takes no more
            client.log_batch(run, params=params[start : start + 100])

        def log(group: str, step: int, numbers: dict[str, float], text: str) -> None:
            now = int(time.time() * 1000)
            client.log_batch(run, [Metric(_name(f"{group}/{name}"), v, now, step) for name, v in numbers.items()])
            if text:
                strength = f" {numbers['strength']:g}" if "strength" in numbers else ""
                client.set_tag(run, _name(f"verdict/{group}{strength}"), text)

        def close(status: str, message: str) -> None:
            client.set_tag(run, "status", status)
            if message:
                client.set_tag(run, "message", message)
            client.set_terminated(run, {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED"))

        return Sink(log, close)

    def _experiment(self, client: Any) -> str:
        """The experiment's id. Jobs that start together ask for it one after another: a file store would make two."""
        from filelock import FileLock

        folder = Path(self.folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if found := client.get_experiment_by_name(self.experiment):
                return found.experiment_id
            try:
                return client.create_experiment(self.experiment)
            except Exception:  # another machine was quicker, or it cannot be made
                if found := client.get_experiment_by_name(self.experiment):
                    return found.experiment_id
                raise


def _name(text: str) -> str:
    """`text` without what MLflow refuses in a name."""
    return re.sub(r"[^\w./ -]", "", text)
