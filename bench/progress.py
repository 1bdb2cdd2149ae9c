"""How a caller hears of what takes time (`Say` takes lines, a `Progress` counts steps), and where its tables go."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]
# progress(what, total) -> a context whose value is called after each of `total` steps (None: nobody knows how many).
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]
PAUSE = 30.0  # seconds: nothing stays silent for longer, and what takes longer is told beforehand
SURE = 10  # steps after which the rest is estimated


def silent(line: str) -> None:
    """The `say` of a caller that wants no progress lines."""


def unseen(what: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
    """The `Progress` of a caller that wants none shown."""
    return contextlib.nullcontext(lambda: None)


@dataclass(eq=False)
class _Stage:
    """What is going on: its name, steps to do (None: nobody knows) and done; how many were done when somebody first
    looked, and when that was; whether its end was told."""

    what: str
    total: int | None
    done: int = 0
    before: int | None = None  # of a training that goes on from a checkpoint most are
    since: float = 0.0
    told: bool = False

    def look(self) -> _Stage:
        if self.before is None:
            self.before, self.since = self.done, time.monotonic()
        return self

    def left(self) -> float:
        """Seconds, of steps as quick as those before; 0 where nobody knows."""
        seen = self.done - (self.before or 0)
        return (time.monotonic() - self.since) / seen * (self.total - self.done) if self.total and seen else 0.0

    def __str__(self) -> str:
        left = self.left()
        if not left:
            return f"  {self.what}: {lasting(time.monotonic() - self.since)} so far"
        return f"  {self.what}: {self.done:,} of {self.total:,}, about {lasting(left)} left"


def lasting(seconds: float) -> str:
    """37 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextlib.contextmanager
def spoken(say: Say, look: float = 1.0) -> Iterator[tuple[Say, Progress]]:
    """(say, progress) for where no line can be redrawn: how long a stage will take is said once after SURE steps where
    that is more than PAUSE, and again whenever nothing was said for PAUSE. A thread looks every `look` seconds."""
    heard, over = [time.monotonic()], threading.Event()
    stages: list[_Stage] = []  # what is inside which

    def told(line: str) -> None:
        heard[0] = time.monotonic()
        say(line)

    @contextlib.contextmanager
    def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
        stage = _Stage(what, total)

        def step() -> None:
            stage.done += 1

        stages.append(stage)
        try:
            yield step
        finally:
            stages.remove(stage)

    def watch() -> None:
        while not over.wait(look):
            now = [stage.look() for stage in [*stages][-1:]]  # of a copy: the other thread ends stages
            early = [s for s in now if not s.told and s.done - s.before >= SURE and s.left() > PAUSE]
            if early or time.monotonic() - heard[0] > PAUSE:
                for stage in now:
                    stage.told = True
                told(str(now[0]) if now else "  still at work")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield told, progress
    finally:
        over.set()
        watcher.join()


def console() -> Console:
    """stdout for tables: as wide as the terminal, 80 columns where it is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
