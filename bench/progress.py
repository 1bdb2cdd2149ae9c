"""How a caller hears of what takes time (`Say` takes lines, a `Progress` counts steps), and where its tables go."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]
# progress(what, total) -> a context whose value is called after each of `total` steps (None: nobody knows how many).
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]


def silent(line: str) -> None:
    """The `say` of a caller that wants no progress lines."""


def unseen(what: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
    """The `Progress` of a caller that wants none shown."""
    return contextlib.nullcontext(lambda: None)


def console() -> Console:
    """stdout for tables: as wide as the terminal, 80 columns where it is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
