"""Run files gathered into one: `python -m bench.report --compact` writes results/runs/runs.parquet.

One record per row, readable by any parquet reader: `file` (the run file's path below the folder), the protocol's
fields, and `env`, `controls`, `outputs` and every node of the configuration (`config.method`, ...) as JSON text, which
repeats and so costs next to nothing. `keys` is the order of the nodes and `whole` names the numbers that the run file
wrote without a fraction, so that a run comes back exactly as it was; one that would not stays a file of its own.

Loose files go on being written and count before the gathered ones. A reader lists them first and opens the parquet
after that; here the parquet is published first and the loose files are deleted after that: nobody misses a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import marshal
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import store
from bench.types import ROW_FIELDS, Row, UserError

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {f.name: str(f.type).split()[0] for f in dataclasses.fields(Row)}
FLOATS = [name for name, kind in KINDS.items() if kind == "float"]
CHUNK = 1000  # runs converted, and checked to come back, at once
GROUP = 8192  # rows in a row group: what a look-up of one run has to read
BLOCKS = ("env", "controls", "outputs")  # of a run file, beside its configuration and rows
DEPTH = 3  # folders between a run file and the parquet: <method>/<attack>/<run_id>.json


def _table(runs: list[tuple[str, dict]]) -> pa.Table:
    """Records of (file, run); run["rows"] must not be empty."""
    import pyarrow as pa

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


def _columns(table: pa.Table) -> Iterator[dict[str, list]]:
    """The values of every column, JSON parsed, in pieces of the table. What reads the same is one object."""
    parsed: dict[str | None, Any] = {}

    def values(name: str, column: pa.Array) -> list:
        if not hasattr(column, "dictionary"):
            return column.to_pylist()
        texts = column.dictionary.to_pylist()
        if name in ("keys", *BLOCKS) or name.startswith("config."):
            texts = [parsed[t] if t in parsed else parsed.setdefault(t, json.loads(t)) for t in texts]
        return [*map([*texts, None].__getitem__, column.indices.fill_null(len(texts)).to_pylist())]

    for batch in table.to_batches():
        yield {name: values(name, column) for name, column in zip(table.column_names, batch.columns, strict=True)}


def _runs(table: pa.Table) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, run) of a table, in its order. Runs share the nodes of their configurations that read the same."""
    last, run = None, {}
    for columns in _columns(table):
        cells = zip(*(columns[name] for name in ROW_FIELDS), strict=True)
        for i, (file, whole, row) in enumerate(zip(columns["file"], columns["whole"], cells, strict=True)):
            if file != last:
                if last is not None:
                    yield last, run
                config = {key: columns[f"config.{key}"][i] for key in columns["keys"][i]}
                blocks = {name: columns[name][i] for name in BLOCKS if name in columns}
                last, run = file, {"config": config, **blocks, "rows": []}
                if run.get("outputs", 0) is None:  # only a mark in outputs has any
                    del run["outputs"]
            fields = dict(zip(ROW_FIELDS, row, strict=False))
            if whole:
                fields |= {name: int(fields[name]) for name in whole.split()}
            run["rows"].append(fields)
    if last is not None:
        yield last, run


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {said}); move it away") from error


def read(path: Path, below: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, run) of one parquet, in the order of paths; `below` a folder ("uchida/") only. Raises UserError."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with _reading(path):
        table = pq.ParquetFile(path).read()
        if below:
            if "whole" not in table.column_names:
                return  # somebody else's file in a folder further up
            table = table.filter(pc.starts_with(table["file"].cast("string"), below))
        yield from _runs(table)


def columns(path: Path) -> dict[str, list]:
    """The columns of store.frame for a whole parquet, without its runs: several times faster. Raises UserError."""
    import pyarrow.parquet as pq

    out: dict[str, list] = {name: [] for name in store.COLUMNS}
    with _reading(path):
        needed = [*ROW_FIELDS, "whole", "controls", "config.attack", "config.verify"]
        for part in _columns(pq.ParquetFile(path).read(columns=needed)):
            for i, names in enumerate(part["whole"]):
                for name in names.split() if names else ():
                    part[name][i] = int(part[name][i])
            for name in ROW_FIELDS:
                out[name] += part[name]
            out["goal"] += [node["goal"] for node in part["config.attack"]]
            for name in ("max_damage", "alpha"):
                out[name] += [node[name] for node in part["config.verify"]]
            for name in store.CONTROLS:
                out[name] += [(tried or {}).get(name) for tried in part["controls"]]
    return out


def find(path: Path) -> dict[str, Any] | None:
    """A run by the path its file had, or None. Reads the statistics and one or two row groups. Raises UserError."""
    for folder in path.parents[:DEPTH]:
        if (gathered := folder / store.GATHERED).is_file():
            import pyarrow.compute as pc
            import pyarrow.parquet as pq

            name = path.relative_to(folder).as_posix()
            with _reading(gathered), pq.ParquetFile(gathered) as file:
                at = file.schema_arrow.get_field_index("file")
                ranges = [file.metadata.row_group(i).column(at).statistics for i in range(file.num_row_groups)]
                groups = [i for i, s in enumerate(ranges) if s is None or s.min <= name <= s.max]
                table = file.read_row_groups(groups)
                for _, run in _runs(table.filter(pc.equal(table["file"], name))):
                    return run
    return None


def _exact(runs: list[tuple[str, dict]]) -> Iterator[pa.Table]:
    """Tables of those runs that come back from them to the letter."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not runs:
        return
    try:
        table = _table(runs)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        if len(runs) > 1:
            yield from _exact(runs[: len(runs) // 2])
            yield from _exact(runs[len(runs) // 2 :])
        return
    back = dict(_runs(table))
    # Bytes, because 1 == 1.0 == True and dicts are equal in any order; version 2 writes equal content equally.
    same = [file for file, run in runs if marshal.dumps(back[file], 2) == marshal.dumps(run, 2)]
    kept = pc.is_in(table["file"].cast("string"), pa.array(same, pa.string()))
    yield table if len(same) == len(runs) else table.filter(kept)


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
    from filelock import FileLock, Timeout

    folder = Path(folder)
    loose, gathered = store.files(folder)
    if not loose and not gathered:
        raise store.no_runs(folder)
    try:
        with FileLock(folder / ".compact.lock", timeout=0):
            for left in folder.glob(f".{store.GATHERED}.*.tmp"):
                left.unlink()
            return _compact(folder)
    except Timeout as error:
        raise UserError(f"another process is compacting {folder}") from error
    except OSError as error:
        said = error.strerror or " ".join(str(error).split())
        raise UserError(f"cannot write {folder / store.GATHERED}: {said}; no run was lost") from error


def _compact(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    loose, gathered = store.files(folder)
    stamps: dict[str, tuple | None] = {}
    stay: Counter[str] = Counter()
    tables: list[pa.Table] = []
    for start in range(0, len(loose), CHUNK):
        runs = []
        for path in loose[start : start + CHUNK]:
            name = path.removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")
            stamp = _stamp(path)
            try:
                run = store.read_loose(path)
            except (UserError, FileNotFoundError):
                stay["not readable"] += 1
                continue
            if not run["rows"] or any(row["status"] == "failed" for row in run["rows"]):
                stay["failed"] += 1
            else:
                runs.append((name, run))
                stamps[name] = stamp
        tables += _exact(runs)
    new = set().union(*(table["file"].unique().to_pylist() for table in tables))
    stay["not to be had exactly from a parquet"] += len(stamps) - len(new)
    found = set(new)
    # What overrides what is as in store.read_runs: loose files first, then the parquets from the top down.
    for path in map(Path, gathered):
        with _reading(path):
            table = pq.ParquetFile(path).read()
            below = path.parent.relative_to(folder).as_posix()
            if below != ".":
                names = pc.binary_join_element_wise(f"{below}/", table["file"].cast("string"), "")
                table = table.set_column(0, "file", names.dictionary_encode())
            table = table.filter(pc.invert(pc.is_in(table["file"].cast("string"), pa.array([*found], pa.string()))))
            found |= set(table["file"].unique().to_pylist())
            tables.append(table)
    if tables and (new or len(gathered) > 1 or gathered != [str(folder / store.GATHERED)]):
        _write(folder / store.GATHERED, tables)
    for name in new:
        path = folder / name
        if _stamp(path) == stamps[name]:  # not written again since it was read
            path.unlink(missing_ok=True)
    for path in map(Path, gathered):
        if path != folder / store.GATHERED:
            path.unlink(missing_ok=True)
    rest = ", ".join(f"{count:,} {why}" for why, count in stay.items() if count)
    done = f"{len(new):,} run files gathered: {len(found):,} runs in {folder / store.GATHERED}"
    return f"{done}; left as files: {rest}" if rest else done


def _trimmed(table: pa.Table) -> pa.Table:
    """The table with dictionaries of what occurs in it only: a row group is written with all of its dictionaries."""
    import pyarrow as pa

    texts = {f.name for f in table.schema if pa.types.is_dictionary(f.type)}
    columns = {n: table[n].cast("string").dictionary_encode() if n in texts else table[n] for n in table.column_names}
    return pa.table(columns).unify_dictionaries()


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Publish tables as one parquet, sorted as store.read_runs sorts files; rows of a run keep their order."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    files = table["file"].to_pylist()
    rank = {name: i for i, name in enumerate(sorted(set(files), key=lambda name: name.split("/")))}
    table = table.take(pc.sort_indices(pa.array([rank[name] for name in files])))
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        # Statistics of the file names alone: they find one run; those of 40 columns would be the larger part of it.
        with pq.ParquetWriter(aside, table.schema, compression="zstd", write_statistics=["file"]) as writer:
            for start in range(0, table.num_rows, GROUP):
                writer.write_table(_trimmed(table.slice(start, GROUP)))
        if pq.read_metadata(aside).num_rows != table.num_rows:
            raise OSError("rows are missing")
        with open(aside, "rb") as file:
            os.fsync(file.fileno())  # the files that it replaces are deleted next
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
