"""What a run tells a logger, and what every kind of logger gives for it."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from bench import metrics, spec
from bench.errors import ConfigError, UserError
from bench.progress import Say, silent
from bench.types import Row

NUMBERS = ("strength", "ber", "log10_p", "claim_ber", "claim_log10_p", "auc", "utility", "seconds", "peak_mb")


@dataclass(frozen=True)
class About:
    """A run before it begins: its name, resolved configuration and tags."""

    name: str
    config: dict[str, Any]
    tags: dict[str, str]

    def params(self) -> dict[str, str | int | float | bool]:
        """The configuration by dotted names; lists and null as text."""
        plain = (str, int, float, bool)
        return {k: v if isinstance(v, plain) else str(v) for k, v in spec.flat(self.config).items()}


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


def installed(package: str) -> None:
    """Raises ConfigError when a logger's package is not here."""
    # A folder of that name in the working directory (wandb makes one) is a package of no origin.
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ConfigError(f"logger={package}: {package} is not installed: pip install -e '.[{package}]'")


class Log:
    """What a run tells its logger. The first failure is one warning and the end of it: results are lost to none."""

    def __init__(self, sink: Sink | None = None, say: Say = silent) -> None:
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
def logged(logger: Logger, about: Callable[[], About], say: Say) -> Iterator[Log]:
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
