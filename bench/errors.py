"""What a user can mend, in one line each: errors, and the checks of a configuration's values that raise them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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


def at_least(name: str, value: float, bound: float) -> None:
    """Raises ConfigError for a number below its bound."""
    if value < bound:
        raise ConfigError(f"{name}={value}: must be at least {bound}")


def increasing(name: str, values: list, low: float, high: float) -> None:
    """Raises ConfigError unless a list of strengths is non-empty, distinct and within [low, high]."""
    if not values or len(set(values)) != len(values) or min(values) < low or max(values) > high:
        raise ConfigError(f"{name}={values}: needs distinct values from {low} to {high}, at least one")


def existing(name: str, path: str | None) -> None:
    """Raises ConfigError for a path that is given and is no file."""
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"{name}={path}: no such file")
