"""Where a run's numbers go besides its run file: `logger=tensorboard`, mlflow or wandb; `none` imports nothing.

A run file is the record and a logger is a view of it, of runs that are made, not of those found done. So a logger that
fails is one warning, and the run goes on without it. Each kind is a frozen dataclass (conf/logger) whose `open` gives
a `Sink`; `Log` is what the pipeline speaks to. To every logger go

    parameters  the resolved configuration, by dotted names
    tags        method, attack, model, data, run_id, config_hash, commit; at the end status and, if any, the reason
    loss        loss/host, loss/mark by epoch, of what this run trained
    rows        KNOB/ber, log10_p, claim_ber, claim_log10_p, utility, damage, seconds, peak_mb and KNOB/strength, by the
                row's place (from 0) on that knob's axis; its verdict as text
    control     what the random keys did: control/random_keys, false_positives, mean_ber, least_log10_p
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from bench import metrics, spec
from bench.types import ConfigError, Row, UserError

NUMBERS = ("strength", "ber", "log10_p", "claim_ber", "claim_log10_p", "utility", "seconds", "peak_mb")


@dataclass(frozen=True)
class About:
    """A run before it begins: its name, resolved configuration and tags."""

    name: str
    config: dict[str, Any]
    tags: dict[str, str]

    def params(self) -> dict[str, str | int | float | bool]:
        """The configuration by dotted names; lists and null as text."""
        return dict(_leaves(self.config, ""))


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str | int | float | bool) else str(value)


@dataclass(frozen=True)
class Sink:
    """An open run of a logger.

    log(group, step, numbers, text): finite numbers of one point, named within the group; text: the row's verdict.
    close(status, message): how the run ended: done, skipped, failed or interrupted, and why.
    """

    log: Callable[[str, int, dict[str, float], str], None]
    close: Callable[[str, str], None]


class Logger(Protocol):
    """A kind of logger; `open` raises whatever its package does, and gives None where there is nothing to log to."""

    def open(self, about: Callable[[], About]) -> Sink | None: ...


@dataclass(frozen=True)
class Off:
    """No logger."""

    def open(self, about: Callable[[], About]) -> None:
        return None


@dataclass(frozen=True)
class TensorBoard:
    """Event files, a folder per run: `folder`/method/attack/run_id/time."""

    folder: str

    def __post_init__(self) -> None:
        _installed("tensorboard")

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


@dataclass(frozen=True)
class MLflow:
    """A run of `experiment` at a tracking server or database (`uri`, else MLFLOW_TRACKING_URI), else in `folder`."""

    uri: str | None
    folder: str
    experiment: str

    def __post_init__(self) -> None:
        _installed("mlflow")
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


@dataclass(frozen=True)
class Wandb:
    """A run of `project` at Weights & Biases; runs of one configuration, seeds apart, are a group there."""

    project: str
    entity: str | None
    mode: str | None
    folder: str

    def __post_init__(self) -> None:
        _installed("wandb")
        if self.mode is not None:
            spec.choice("logger.mode", self.mode, ("online", "offline"))

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


def _installed(package: str) -> None:
    """Raises ConfigError when a logger's package is not here."""
    # A folder of that name in the working directory (wandb makes one) is a package of no origin.
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ConfigError(f"logger={package}: {package} is not installed: pip install -e '.[{package}]'")


def _name(text: str) -> str:
    """`text` without what MLflow refuses in a name."""
    return re.sub(r"[^\w./ -]", "", text)


class Log:
    """What a run tells its logger. The first failure is one warning and the end of it: results are lost to none."""

    def __init__(self, sink: Sink | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        self.sink, self.say = sink, say
        self.places: Counter[str] = Counter()

    def losses(self, stage: str) -> Callable[[int, float], None] | None:
        """What hears of a stage's (epoch, mean loss), or None where nobody listens."""
        return (lambda epoch, value: self._do("log", "loss", epoch, {stage: value}, "")) if self.sink else None

    def row(self, row: Row, goal: str, max_damage: float) -> None:
        """A row's numbers and verdict, at its place among the rows of its knob."""
        if self.sink is None:
            return
        values = asdict(row)
        numbers = {name: values[name] for name in NUMBERS}
        suspect = row.status == "ok" and not metrics.is_control(row.knob)
        numbers["damage"] = metrics.damage(values) if suspect else None
        finite = {name: float(v) for name, v in numbers.items() if v is not None and math.isfinite(v)}
        verdict = metrics.verdict(values, goal, max_damage)
        self._do("log", row.knob, self.places[row.knob], finite, f"{verdict}: {row.error}" if row.error else verdict)
        self.places[row.knob] += 1

    def controls(self, found: dict[str, Any] | None) -> None:
        """What the random keys did, under `control`."""
        if found:
            self._do("log", "control", 0, {name: float(value) for name, value in found.items()}, "")

    def close(self, status: str, message: str) -> None:
        """The end of the run; what comes after it is not heard."""
        self._do("close", status, message)
        self.sink = None

    def _do(self, what: str, *args: Any) -> None:
        if self.sink is not None:
            try:
                getattr(self.sink, what)(*args)
            except Exception as error:  # every package has errors of its own
                self.sink = None
                self.say(warning(error))


def warning(error: Exception) -> str:
    """What is said of a logger's failure, in one line."""
    said = " ".join(str(error).split())[:200]
    return f"warning: the logger failed, this run goes on without it ({type(error).__name__}: {said})"


@contextmanager
def logged(logger: Logger, about: Callable[[], About], say: Callable[[str], None]) -> Iterator[Log]:
    """The log of one run, closed at the end: as `failed` or `interrupted` where an exception leaves the context."""
    log = Log(None, say)
    try:
        log.sink = logger.open(about)
    except Exception as error:
        say(warning(error))
    try:
        yield log
    except BaseException as error:
        if isinstance(error, Exception):
            name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            log.close("failed", " ".join(f"{name}{error}".split()))
        else:
            log.close("interrupted", "")
        raise
