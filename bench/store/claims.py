"""claims.json, what bench.claims found: its fields, its reader, and how an entry takes the place of an older one."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import spec
from bench.errors import UserError
from bench.store.files import write_json

COLUMNS = ("name", "paper", "claim", "criterion", "verdict", "text", "data", "model", "seeds", "run_ids", "command")
COLUMNS += ("published",)  # what the paper reports of it, in words; entries from before it have none
# Options that change no number, and those whose outcome an entry names anyway (data, model).
BESIDE = ("results_dir", "threads", "device", "cache", "logger", "force", "debug", "data", "model")


def read(path: Path) -> list[dict[str, Any]] | None:
    """The entries of a claims.json, COLUMNS of each; None where there is no file.

    Raises UserError for a file that is something else.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, list):
            raise TypeError("not a list")
        return [_entry({"published": ""} | item) for item in found]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no claims ({type(error).__name__}: {error}); delete it") from error


def _entry(item: dict[str, Any]) -> dict[str, Any]:
    """An entry as it was written. Those of before there was a check have none."""
    entry = {name: item[name] for name in COLUMNS}
    if odd := item.keys() - {*COLUMNS, "check"}:
        raise ValueError(f"it has an entry {min(odd)!r}")
    if "check" in item and item["check"] != spec.digest(entry):
        raise ValueError("checksum differs")
    return entry


def settings(entry: dict[str, Any]) -> tuple[str, ...]:
    """The words of an entry's command that make it another question: train.epochs=1, seed=0, method.n_bits=64."""
    words = [word for word in shlex.split(entry["command"]) if "=" in word or word.startswith("~")]

    def beside(word: str) -> bool:
        key = word.lstrip("+~").partition("=")[0]
        return key in BESIDE or key.startswith(("cache.", "logger."))

    return tuple(sorted(word for word in words if not beside(word)))


def place(item: dict[str, Any]) -> list[str]:
    """What an entry was judged on: networks, data, and the settings that were given."""
    return [item["model"], item["data"], *settings(item)]


def identity(entry: dict[str, Any]) -> tuple:
    """What two entries have in common of which the later replaces the earlier."""
    return entry["name"], entry["data"], entry["model"], settings(entry)


def remember(path: Path, new: dict[str, Any]) -> list[dict[str, Any]]:
    """Put an entry in the place of the one of the same claim, data, networks and settings; other processes may do so at
    the same time. Returns all, in the order of names. Raises UserError where it cannot be written."""
    with locked(path):
        entries = [item for item in read(path) or [] if identity(item) != identity(new)] + [new]
        entries.sort(key=identity)
        write_json(path, [item | {"check": spec.digest(item)} for item in entries])
    return entries


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time reads claims.json, changes it, and writes what follows from it."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f"{path.name}.lock")).acquire()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    with held:
        yield
