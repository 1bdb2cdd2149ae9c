"""Run files: one small JSON per run, {config, env, command, controls, rows}."""

from __future__ import annotations

import json
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.store.files import write_json
from bench.types import ROW_FIELDS, ROW_LATER, Row

GATHERED = "runs.parquet"  # many of them in one: bench.store.parquet
FIELDS = frozenset(ROW_FIELDS) - frozenset(ROW_LATER)
LATER = dict.fromkeys(ROW_LATER)
VALUES = itemgetter(*ROW_FIELDS)
BEFORE = dict.fromkeys(("config", "env", "command", "controls"))  # some files are from before there were all of them
CONTROLS = ("random_keys", "false_positives")
COLUMNS = [*ROW_FIELDS, "goal", "max_damage", "alpha", *CONTROLS]


def run_path(results: str | Path, method: str, attack: str, run_id: str) -> Path:
    return Path(results) / "runs" / method / attack / f"{run_id}.json"


def write_run(
    path: Path,
    config: dict,
    env: dict,
    command: list[str] | None,
    controls: dict | None,
    rows: list[Row],
    outputs: list[dict] | None = None,
) -> None:
    """`command`: the words after `python -m bench` that composed the configuration, None where no command did.
    `controls`: what the random keys did (bench.controls), None where none were tried. `outputs`: what is measured of
    each suspect's outputs (bench.gallery), where a mark is read from them."""
    more = {} if outputs is None else {"outputs": outputs}
    blocks = {"config": config, "env": env, "command": command, "controls": controls, **more}
    write_json(path, {**blocks, "rows": [asdict(row) for row in rows]})


def read_loose(path: str | Path) -> dict[str, Any]:
    """One run file as it lies there. Raises FileNotFoundError, and UserError for anything that is no run file."""
    try:
        with open(path, "rb") as file:
            run = json.loads(file.read())
        run["config"].keys(), run["env"]
        for row in run["rows"]:
            if missing := FIELDS - row.keys():
                raise KeyError(", ".join(sorted(missing)))
            if not LATER.keys() <= row.keys():
                row.update({name: row.get(name) for name in LATER})
        return BEFORE | run
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a run file ({type(error).__name__}: {error}); delete it") from error


def records(run: dict[str, Any]) -> list[tuple]:
    """The values of COLUMNS, of each row of a run."""
    verify, tried = run["config"]["verify"], run["controls"] or {}
    judge = (run["config"]["attack"]["goal"], verify["max_damage"], verify["alpha"], *map(tried.get, CONTROLS))
    return [(*VALUES(row), *judge) for row in run["rows"]]
