"""Run files: one small JSON per run, {config, env, rows}, written whole or not at all; many of them in one parquet
once they were compacted (bench.compact), which readers here do not have to know."""

from __future__ import annotations

import contextlib
import gc
import heapq
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.spec import choice, near
from bench.types import ROW_FIELDS, Row, UserError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
FIELDS = frozenset(ROW_FIELDS)
CONTROLS = ("random_keys", "false_positives")
COLUMNS = [*ROW_FIELDS, "goal", "max_damage", "alpha", *CONTROLS]
GATHERED = "runs.parquet"
FILTERS = ("method", "attack", "model", "data", "seed")


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


def write_run(
    path: Path, config: dict, env: dict, controls: dict | None, rows: list[Row], outputs: list[dict] | None = None
) -> None:
    """`controls`: what the random keys did (bench.controls), None where none were tried. `outputs`: what is measured of
    each suspect's outputs (bench.gallery), where a mark is read from them."""
    more = {} if outputs is None else {"outputs": outputs}
    blocks = {"config": config, "env": env, "controls": controls, **more}
    write_json(path, {**blocks, "rows": [asdict(row) for row in rows]})


def read_loose(path: str | Path) -> dict[str, Any]:
    """One run file as it lies there. Raises FileNotFoundError, and UserError for anything that is no run file."""
    try:
        with open(path, "rb") as file:
            run = json.loads(file.read())
        run["config"], run["env"]
        run.setdefault("controls", None)  # files from before there were any
        for row in run["rows"]:
            if missing := FIELDS - row.keys():
                raise KeyError(", ".join(sorted(missing)))
        return run
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a run file ({type(error).__name__}: {error}); delete it") from error


def read_run(path: Path) -> dict[str, Any]:
    """The run of a path, from its file or, where it was compacted, from the parquet (bench.compact).

    Raises FileNotFoundError for neither and UserError, naming the file, for one that is not what it should be.
    """
    try:
        return read_loose(path)
    except FileNotFoundError:
        from bench import compact

        if run := compact.find(path):
            return run
        raise


def files(folder: str | Path) -> tuple[list[str], list[str]]:
    """Run files and parquets of runs below a folder, each in a fixed order: run files by path, parquets top down."""
    loose, gathered = [], []
    for at, folders, names in os.walk(folder):
        folders.sort()
        loose += [f"{at}{os.sep}{name}" for name in names if name.endswith(".json") and not name.startswith(".")]
        gathered += [f"{at}{os.sep}{name}" for name in names if name == GATHERED]
    return sorted(loose, key=_parts), gathered


def _parts(path: str) -> list[str]:
    return path.split(os.sep)


def no_runs(path: str | Path) -> UserError:
    return UserError(f"no run files below {path}; make some: python -m bench method=neuralmark attack=prune")


def _runs(path: Path) -> Iterator[dict[str, Any]]:
    """Runs below a folder in the order of their paths, each once: a file counts before a compacted run."""
    loose, gathered = files(path)  # before the parquets are opened: see bench.compact
    sources = [((file, read_loose(file)) for file in loose)]
    sources += [_gathered(file, os.path.dirname(file), "") for file in gathered]
    full = path.resolve()
    for up in full.parents[:2]:  # a folder of one that was compacted
        if (file := up / GATHERED).is_file():
            sources.append(_gathered(file, path, f"{full.relative_to(up).as_posix()}/"))
    last = ""
    for file, run in heapq.merge(*sources, key=lambda item: _parts(item[0])):
        if file != last:
            yield run
        last = file
    if not last:
        raise no_runs(path)


def _gathered(file: str | Path, at: str | Path, below: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from bench import compact

    for name, run in compact.read(Path(file), below):
        yield os.path.join(at, name.removeprefix(below)), run


def _collected(path: str | Path, collect: Callable[[Iterator[dict[str, Any]]], T]) -> T:
    for _ in range(100):
        try:
            with _no_collector():
                return collect(_runs(Path(path)))
        except FileNotFoundError as error:
            gone = error  # compacted while we read: from the start
            time.sleep(0.1)
    raise UserError(f"{gone.filename} cannot be read: {gone.strerror}")


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    # Millions of objects and no cycles: the collector would look at all of them again and again.
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_runs(path: str | Path) -> list[dict[str, Any]]:
    """Every run below a folder, in a fixed order. Raises UserError when there is none.

    Configurations of compacted runs share what they have in common: not to be changed in place.
    """
    return _collected(path, list)


def frame(runs: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows of run files as one tidy DataFrame: the protocol's fields, then goal, max_damage and alpha, and how many
    random keys were tried on the run's victim and verified."""
    import pandas as pd

    values, rows = itemgetter(*ROW_FIELDS), []
    for run in runs:
        verify = run["config"]["verify"]
        tried = run["controls"] or {}
        judge = (run["config"]["attack"]["goal"], verify["max_damage"], verify["alpha"])
        judge += tuple(tried.get(name) for name in CONTROLS)
        rows += [(*values(row), *judge) for row in run["rows"]]
    return pd.DataFrame(rows, columns=COLUMNS)


def load(path: str | Path) -> pd.DataFrame:
    """All rows of a folder as one tidy DataFrame (see `frame`). Raises UserError when there is none."""
    loose, gathered = files(path)
    if not loose and gathered == [os.path.join(path, GATHERED)]:
        import pandas as pd

        from bench import compact

        with contextlib.suppress(FileNotFoundError), _no_collector():
            return pd.DataFrame(compact.columns(Path(gathered[0])))
    return _collected(path, frame)


def selected(runs: list[dict], filters: Iterable[str]) -> list[dict]:
    """Runs that pass every `key=value,value`. Raises UserError for an unknown key and for nothing left."""
    runs = [run for run in runs if run["rows"]]
    for item in filters:
        key, _, value = item.partition("=")
        choice("filter", key, FILTERS)
        names = {str(run["rows"][0][key]) for run in runs}
        runs = [run for run in runs if str(run["rows"][0][key]) in value.split(",")]
        if not runs:
            raise UserError(f"{item} leaves nothing; {near(value, names)}")
    if not runs:
        raise UserError("the run files hold no rows")
    return runs
