"""Files written whole or not at all: aside under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.errors import UserError

DAY = 24 * 3600


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """A path aside to write to, which takes the place of `path` at the end of the block, unless that raises: readers
    and killed writers never see half a file. Makes the folder; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        swept(path.parent)
        yield aside
        os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@lru_cache(maxsize=1024)
def swept(folder: Path) -> None:
    """Once in a process, remove what killed writers left in a folder a day ago or before."""
    for left in folder.glob(".*.????????.tmp"):
        with contextlib.suppress(OSError):
            if left.is_file() and time.time() - left.stat().st_mtime > DAY:
                left.unlink()


def write_text(path: Path, text: str) -> None:
    """Publish a text. Raises UserError where it cannot be written."""
    try:
        with published(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; nothing was left half-written") from error


def write_json(path: Path, content: Any) -> None:
    """Publish JSON; a number that is not finite is null. Raises UserError where it cannot be written."""
    write_text(path, as_json(content))


def as_json(content: Any) -> str:
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no nan or inf: a number that is not one is null, in rows as everywhere."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
