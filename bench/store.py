"""Run files: one small JSON per run, {config, env, rows}, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.types import ROW_FIELDS, Row, UserError

if TYPE_CHECKING:
    import pandas as pd


def run_path(results: str | Path, method: str, attack: str, run_id: str) -> Path:
    return Path(results) / "runs" / method / attack / f"{run_id}.json"


def _plain(value: Any) -> Any:
    """JSON has no nan or inf: a number that is not one is null, in rows as everywhere."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name and rename: readers and killed writers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; nothing was left half-written") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def write_run(path: Path, config: dict, env: dict, rows: list[Row]) -> None:
    write_json(path, {"config": config, "env": env, "rows": [asdict(row) for row in rows]})


def read_run(path: Path) -> dict[str, Any]:
    """One run file. Raises UserError, naming the file, for anything that is not one."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["config"], run["env"]
        for row in run["rows"]:
            if missing := set(ROW_FIELDS) - set(row):
                raise KeyError(", ".join(sorted(missing)))
        return run
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run file ({type(error).__name__}: {error}); delete it") from error


def read_runs(path: str | Path) -> list[dict[str, Any]]:
    """Every run file below a folder, in a fixed order. Raises UserError when there is none."""
    files = sorted(p for p in Path(path).rglob("*.json") if not p.name.startswith("."))
    if not files:
        raise UserError(f"no run files below {path}; make some: python -m bench method=neuralmark attack=prune")
    return [read_run(p) for p in files]


def frame(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of run files as one tidy DataFrame: the protocol's fields, then goal, max_damage and alpha."""
    import pandas as pd

    rows = [
        {
            **{name: row[name] for name in ROW_FIELDS},
            "goal": run["config"]["attack"]["goal"],
            "max_damage": run["config"]["verify"]["max_damage"],
            "alpha": run["config"]["verify"]["alpha"],
        }
        for run in runs
        for row in run["rows"]
    ]
    return pd.DataFrame(rows, columns=[*ROW_FIELDS, "goal", "max_damage", "alpha"])


def load(path: str | Path) -> pd.DataFrame:
    """All rows of a folder as one tidy DataFrame (see `frame`)."""
    return frame(read_runs(path))
