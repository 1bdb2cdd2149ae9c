"""What a user can mend, in one line each: errors, the checks of a configuration's values that raise them, and the frame
of a command that turns them into its exit status."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can mend: shown as one line, never as a traceback.

    `code` is the exit status: 2 for a configuration that cannot be, 1 for a run that went wrong.
    """

    def __init__(self, message: str, code: int = 1):
        super().__init__(" ".join(str(message).split()))
        self.code = code


class ConfigError(UserError):
    """A configuration that cannot be: unknown name, wrong type, a layer that is too small."""

    def __init__(self, message: str):
        super().__init__(message, code=2)


def near(name: str, valid: Iterable[str], all_below: int = 40) -> str:
    """`did you mean ...; valid: ...`, for the end of an error line."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return hint + (f"valid: {', '.join(valid)}" if len(valid) <= all_below else f"{len(valid)} names are valid")


def choice(name: str, value: Any, valid: Iterable[str]) -> None:
    """Raises ConfigError unless value is one of valid."""
    valid = tuple(valid)
    if value not in valid:
        raise ConfigError(f"{name}={value}: not known; {near(str(value), valid)}")


SEEDS = (-(2**63), 2**63 - 1)
MOST = 10**9  # of a number without an upper bound of its own: nothing here counts further, and memory ends earlier


def at_least(name: str, value: float, bound: float) -> None:
    """Raises ConfigError for a number below its bound."""
    bounded(name, value, bound)


def finite(name: str, value: float) -> None:
    """Raises ConfigError for nan and infinity, which no comparison with a bound finds."""
    if not math.isfinite(value):
        raise ConfigError(f"{name}={value}: must be a finite number")


def _numbers(value: Any) -> list[float]:
    """The numbers of a field's value, those in its lists and dictionaries too."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def bounded(name: str, value: float, low: float, high: float | None = None, ends: str = "[]") -> None:
    """Raises ConfigError for a number that is not finite, below `low` or above `high` (None: MOST), or at an end that
    `ends` leaves open, as intervals are written: "(]"."""
    top = MOST if high is None else high
    finite(name, value)
    inside = (low < value if ends[0] == "(" else low <= value) and (value < top if ends[1] == ")" else value <= top)
    if inside:
        return
    if high is None:
        below = f"above {low}" if ends[0] == "(" else f"at least {low}"
        raise ConfigError(f"{name}={value}: must be {below if value <= low else f'at most {MOST:,}'}")
    span = f"from {low} to {high}" if ends == "[]" else f"in {ends[0]}{low}, {high}{ends[1]}"
    raise ConfigError(f"{name}={value}: must be {span}")


def within(low: float, high: float | None = None, empty: bool = False, ends: str = "[]", repeated: bool = False) -> Any:
    """A dataclass field (`epochs: int = within(1)`) for a number of at least `low` and at most `high` (None: MOST), or
    for a list of strengths, which must be distinct unless they may be `repeated`, and one at least unless it may be
    `empty`. ends: see `bounded`."""
    return field(metadata={"within": (low, high, ends), "empty": empty, "repeated": repeated})


def among(*valid: str) -> Any:
    """A dataclass field (`mode: str = among("ftal", "ftll")`) for one of some names, or for a list of them."""
    return field(metadata={"among": valid})


def checked(config: Any, group: str) -> None:
    """Raises ConfigError for a value of a dataclass that its field (`within`, `among`, spec.file) does not allow.

    None is always allowed. For `__post_init__`; `group` is what errors call the configuration, `attack` say.
    """
    for f in fields(config):
        name, value = f"{group}.{f.name}".lstrip("."), getattr(config, f.name)
        items = value if isinstance(value, list) else [value]
        if value is None or (not items and f.metadata.get("empty")):
            continue
        for item in items if "among" in f.metadata else ():
            choice(name, item, f.metadata["among"])
        if "file" in f.metadata and not Path(value).is_file():
            raise ConfigError(f"{name}={value}: no such file")
        for number in _numbers(value):
            finite(name, number)
        if "within" not in f.metadata:
            continue
        distinct = f.metadata.get("repeated") or len({*items}) == len(items)
        if isinstance(value, list) and not (items and distinct):
            low, high, _ = f.metadata["within"]
            raise ConfigError(f"{name}={value}: needs distinct values from {low} to {high or MOST}, at least one")
        for item in items:
            bounded(name, item, *f.metadata["within"])


def plain() -> None:
    """Let stdout take any text: a terminal without "–" gets a "?", not a traceback."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def complain(line: str) -> None:
    """A line on stderr, if that takes any."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def from_system(error: OSError) -> str:
    """What the system refused, in a line."""
    try:
        os.getcwd()
    except OSError:
        return "the working directory is gone; change into one that is there"
    said = error.strerror or " ".join(str(error).split())
    return f"{error.filename}: {said}" if error.filename else said


def framed(work: Callable[[], int], kept: str = "", debug: str = "") -> int:
    """The exit status of a command: what `work` returns, once stdout has taken all that was printed.

    What the user or the machine has to mend is one line on stderr. After an interruption, what is `kept` is said.
    debug: what shows where any other exception comes from, which then is one line as well.
    """
    plain()
    try:
        code = work()
    except UserError as error:
        complain(f"error: {error}")
        code = error.code
    except KeyboardInterrupt:
        complain(f"interrupted: {kept}; the same command goes on" if kept else "interrupted")
        code = 130
    except SystemExit as stop:
        if isinstance(stop.code, str):
            complain(stop.code)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # whoever read it has enough: head, or a pager that was left
        code = 1
    except (OSError, MemoryError) as error:
        complain(f"error: {from_system(error) if isinstance(error, OSError) else 'out of memory'}")
        code = 1
    except Exception as error:
        if not debug:
            raise
        complain(f"error: {type(error).__name__}: {' '.join(str(error).split())[:500]} ({debug} shows where)")
        code = 1
    return code if _flushed() else max(1, code)


def _flushed() -> bool:
    """Whether stdout took what was printed. What it did not is given up, or the interpreter would try again, and
    complain, at its end."""
    try:
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
        return True
    except BrokenPipeError:
        pass
    except (OSError, ValueError) as error:
        complain(f"error: cannot write to stdout: {getattr(error, 'strerror', None) or error}")
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False
