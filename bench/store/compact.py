"""Run files gathered into one: `python -m bench.report --compact` writes results/runs/runs.parquet.

What is in it: bench.store.parquet. A run that would not come back from it exactly stays a file of its own.

Loose files go on being written and count before the gathered ones. A reader lists them first and opens the parquet
after that; here the parquet is published first and the loose files are deleted after that: nobody misses a run.
"""

from __future__ import annotations

import dataclasses
import json
import marshal
import os
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from bench.errors import UserError
from bench.store.files import published
from bench.store.parquet import BLOCKS, opened, read, runs_of, seal
from bench.store.runfile import GATHERED, read_loose
from bench.store.runs import listed, no_runs, once
from bench.types import Row

KINDS = {f.name: str(f.type).split()[0] for f in dataclasses.fields(Row)}
Run = tuple[str, dict]  # the path of its file below the folder, and what is in it
FLOATS = [name for name, kind in KINDS.items() if kind == "float"]
ROWS = 10_000  # of a row group that is written again
GROUP = 1000  # runs converted, and checked to come back, at once: a row group, what a look-up of one run has to read


def _table(runs: list[Run]) -> pa.Table:
    """Records of (file, run); run["rows"] must not be empty."""
    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    rows = [row for _, run in runs for row in run["rows"]]
    columns = {name: pa.array([row[name] for row in rows], types[kind]) for name, kind in KINDS.items()}
    columns["whole"] = pa.array([" ".join(n for n in FLOATS if type(row[n]) is int) for row in rows])
    texts = {"file": [file for file, _ in runs]}
    texts["keys"] = [json.dumps([*run["config"]]) for _, run in runs]
    for key in BLOCKS:
        texts[key] = [json.dumps(run.get(key)) for _, run in runs]
    for key in dict.fromkeys(key for _, run in runs for key in run["config"]):
        texts[f"config.{key}"] = [json.dumps(run["config"][key]) if key in run["config"] else None for _, run in runs]
    at = pa.array([i for i, (_, run) in enumerate(runs) for _ in run["rows"]])
    texts = {name: pa.array(values, pa.string()).dictionary_encode().take(at) for name, values in texts.items()}
    columns = {n: c.dictionary_encode() if pa.types.is_string(c.type) else c for n, c in columns.items()}
    return pa.table({"file": texts.pop("file"), **columns, **texts})


def _exact(runs: list[Run]) -> Iterator[pa.Table]:
    """Tables of those runs that come back from them to the letter."""
    try:
        table = _table(runs)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        if len(runs) > 1:
            yield from _exact(runs[: len(runs) // 2])
            yield from _exact(runs[len(runs) // 2 :])
        return
    back = dict(runs_of(table))
    # Bytes, because 1 == 1.0 == True and dicts are equal in any order; version 2 writes equal content equally.
    same = [file for file, run in runs if marshal.dumps(back[file], 2) == marshal.dumps(run, 2)]
    if same:
        yield table.filter(pc.is_in(table["file"].cast("string"), pa.array(same, pa.string())))


def _stamp(path: str | Path) -> tuple[int, ...] | None:
    try:
        facts = os.stat(path)
        return facts.st_ino, facts.st_size, facts.st_mtime_ns
    except FileNotFoundError:
        return None


def compact(folder: str | Path) -> str:
    """Gather all run files below a folder into its runs.parquet; returns a line that tells what was done.

    Failed runs, which are tried again, and files that are no runs stay as they are. May run while others write, may
    be killed at any time, and takes up what is there already. Raises UserError when there are no runs, another
    process is at it, or the folder cannot be written.
    """
    folder = Path(folder)
    loose, gathered = listed(folder, links=False)  # what is linked is another folder's
    if not loose and not gathered:
        raise no_runs(folder)
    try:
        with FileLock(folder / ".compact.lock", timeout=0):
            for left in folder.glob(f".{GATHERED}.*.tmp"):
                left.unlink()
            return _compact(folder)
    except Timeout as error:
        raise UserError(f"another process is compacting {folder}") from error
    except OSError as error:
        said = error.strerror or " ".join(str(error).split())
        raise UserError(f"cannot write {folder / GATHERED}: {said}; no run was lost") from error


def removed(folder: Path, files: Collection[str]) -> None:
    """Take runs out of a folder's runs.parquet, by the paths that their files had below it. Raises UserError when
    another process is compacting, or the folder cannot be written."""
    path = folder / GATHERED
    try:
        with FileLock(folder / ".compact.lock", timeout=0):
            table = opened(path).read()
            gone = pc.is_in(table["file"].cast("string"), pa.array(sorted(files), pa.string()))
            if (left := table.filter(pc.invert(gone))).num_rows:
                _write(path, [left.slice(at, ROWS) for at in range(0, left.num_rows, ROWS)])
            else:
                path.unlink()
    except Timeout as error:
        raise UserError(f"another process is compacting {folder}") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; no run was lost") from error


def _compact(folder: Path) -> str:
    loose, gathered = listed(folder, links=False)  # what is linked is another folder's
    stamps: dict[str, tuple | None] = {}
    stay: Counter[str] = Counter()
    # What overrides what is as in read_runs: loose files first, then the parquets from the top down.
    merged = once([_loose(folder, loose, stamps, stay), *(_gathered(folder, Path(path)) for path in gathered)])
    tables: list[pa.Table] = []
    seen: set[str] = set()
    while group := [*islice(merged, GROUP)]:
        seen |= {name for name, _ in group}
        tables += _exact(group)
    found = set().union(*(table["file"].unique().to_pylist() for table in tables))
    if lost := seen - found - stamps.keys():
        raise OSError(f"{min(lost)} would not come back from it")
    new = stamps.keys() & found
    stay["not to be had exactly from a parquet"] += len(stamps) - len(new)
    if tables and (new or gathered != [str(folder / GATHERED)]):
        _write(folder / GATHERED, tables)
    for name in new:
        path = folder / name
        if _stamp(path) == stamps[name]:  # not written again since it was read
            path.unlink(missing_ok=True)
    for path in map(Path, gathered):
        if path != folder / GATHERED:
            path.unlink(missing_ok=True)
    rest = ", ".join(f"{count:,} {why}" for why, count in stay.items() if count)
    done = f"{len(new):,} run files gathered: {len(found):,} runs in {folder / GATHERED}"
    return f"{done}; left as files: {rest}" if rest else done


def _loose(folder: Path, paths: list[str], stamps: dict[str, tuple | None], stay: Counter[str]) -> Iterator[Run]:
    """Run files that may be gathered, their stamps from before they were read; why others stay."""
    for path in paths:
        stamp = _stamp(path)
        try:
            run = read_loose(path)
        except (UserError, FileNotFoundError):
            stay["not readable"] += 1
            continue
        if not run["rows"] or any(row["status"] == "failed" for row in run["rows"]):
            stay["failed"] += 1
            continue
        name = path.removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")
        stamps[name] = stamp
        yield name, run


def _gathered(folder: Path, path: Path) -> Iterator[Run]:
    for name, run in read(path):
        yield (path.parent / name).relative_to(folder).as_posix(), run


def _write(path: Path, tables: list[pa.Table]) -> None:
    """Publish tables as one parquet, each a row group."""
    schema = pa.unify_schemas([table.schema for table in tables])
    with published(path) as aside:
        # Statistics of the file names alone: they find one run; those of 40 columns would be the larger part of it.
        how = {"compression": "zstd", "write_statistics": ["file"], "write_page_checksum": True}
        with pq.ParquetWriter(aside, schema, **how) as writer:
            for table in tables:
                writer.write_table(pa.concat_tables([schema.empty_table(), table], promote_options="default"))
        if pq.read_metadata(aside).num_rows != sum(table.num_rows for table in tables):
            raise OSError("rows are missing")
        seal(aside)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())  # the files that it replaces are deleted next
