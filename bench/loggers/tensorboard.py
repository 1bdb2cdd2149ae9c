"""`logger=tensorboard`."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.loggers.log import About, Sink, installed


@dataclass(frozen=True)
class TensorBoard:
    """Event files, a folder per run: `folder`/method/attack/run_id/time."""

    folder: str

    def __post_init__(self) -> None:
        installed("tensorboard")

    def open(self, about: Callable[[], About]) -> Sink:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        it, now = about(), time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
        tags = it.tags
        folder = Path(self.folder, tags["method"], tags["attack"], tags["run_id"], f"{now}-{uuid.uuid4().hex[:6]}")
        folder.mkdir(parents=True)
        path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"

        # Not SummaryWriter: it writes in a thread, whose errors are tracebacks on stderr and known a call later.
        def write(*fields: dict[str, Any], step: int = 0) -> None:
            with path.open("ab") as file:
                for field in fields:
                    RecordWriter(file).write(Event(wall_time=time.time(), step=step, **field).SerializeToString())

        def log(group: str, step: int, numbers: dict[str, float], text: str) -> None:
            scalars = [summary.scalar(f"{group}/{name}", value) for name, value in numbers.items()]
            texts = [summary.text(f"{group}/verdict", text)] if text else []
            write(*({"summary": part} for part in scalars + texts), step=step)

        def close(status: str, message: str) -> None:
            write({"summary": summary.text("status", f"{status}: {message}" if message else status)})

        params = summary.hparams({**it.params(), **tags}, {"none/ber": 0, "none/utility": 0})
        texts = [summary.text(f"tags/{name}", value) for name, value in tags.items()]
        write({"file_version": "brain.Event:2"}, *({"summary": part} for part in (*params, *texts)))
        return Sink(log, close)
