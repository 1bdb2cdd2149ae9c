"""What a user can mend, in one line each: errors, and the checks of a configuration's values that raise them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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


def at_least(name: str, value: float, bound: float) -> None:
    """Raises ConfigError for a number below its bound."""
    if value < bound:
        raise ConfigError(f"{name}={value}: must be at least {bound}")


def within(low: float, high: float | None = None, empty: bool = False) -> Any:
    """A dataclass field (`epochs: int = within(1)`) for a number of at least `low` and at most `high`, or for a list of
    strengths, which must be distinct, and one at least unless it may be `empty`."""
    return field(metadata={"within": (low, high), "empty": empty})


def among(*valid: str) -> Any:
    """A dataclass field (`mode: str = among("ftal", "ftll")`) for one of some names, or for a list of them."""
    return field(metadata={"among": valid})


def checked(config: Any, group: str) -> None:
    """Raises ConfigError for a value of a dataclass that its field (`within`, `among`, spec.file) does not allow.

    None is always allowed. For `__post_init__`; `group` is what errors call the configuration, `attack` say.
    """
    for f in fields(config):
        name, value = f"{group}.{f.name}", getattr(config, f.name)
        items = value if isinstance(value, list) else [value]
        if value is None or (not items and f.metadata.get("empty")):
            continue
        for item in items if "among" in f.metadata else ():
            choice(name, item, f.metadata["among"])
        if "file" in f.metadata and not Path(value).is_file():
            raise ConfigError(f"{name}={value}: no such file")
        if "within" not in f.metadata:
            continue
        low, high = f.metadata["within"]
        if isinstance(value, list):
            if not items or len(set(items)) != len(items) or min(items) < low or max(items) > high:
                raise ConfigError(f"{name}={value}: needs distinct values from {low} to {high}, at least one")
        elif high is None:
            at_least(name, value, low)
        elif not low <= value <= high:
            raise ConfigError(f"{name}={value}: must be from {low} to {high}")
