"""Reads the parquet that bench.store.compact writes: every run, all columns, or one run.

One record per row, readable by any parquet reader: `file` (the run file's path below the folder), the protocol's
fields, and `env`, `command`, `controls`, `outputs`, `expected`, `knobs`, `stages` and every node of the configuration
(`config.method`, ...) as JSON text, which repeats and so costs next to nothing. `keys` is the order of the nodes and
`whole` names the numbers that the run file wrote without a fraction, so that a run comes back exactly as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.errors import UserError
from bench.store.runfile import COLUMNS, CONTROLS
from bench.types import ROW_FIELDS, ROW_LATER

SEAL = b"SHA-256:"
MORE = ("outputs", "expected", "knobs", "stages")  # of a mark in outputs; of published runs; of later ones
BLOCKS = ("env", "command", "controls", *MORE)  # of a run file, beside its configuration and rows


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
        later = {name: [None] * len(batch) for name in ROW_LATER}  # a file from before there were these
        found = zip(table.column_names, batch.columns, strict=True)
        yield later | {name: values(name, column) for name, column in found}


def runs_of(table: pa.Table) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, run) of a table, in its order. Runs share the nodes of their configurations that read the same."""
    last, run = None, {}
    for columns in _columns(table):
        cells = zip(*(columns[name] for name in ROW_FIELDS), strict=True)
        for i, (file, whole, row) in enumerate(zip(columns["file"], columns["whole"], cells, strict=True)):
            if file != last:
                if last is not None:
                    yield last, run
                config = {key: columns[f"config.{key}"][i] for key in columns["keys"][i]}
                blocks = {name: columns[name][i] if name in columns else None for name in BLOCKS}
                blocks = {name: block for name, block in blocks.items() if block is not None or name not in MORE}
                last, run = file, {"config": config, **blocks, "rows": []}
            fields = dict(zip(ROW_FIELDS, row, strict=False))
            if whole:
                fields |= {name: int(fields[name]) for name in whole.split()}
            run["rows"].append(fields)
    if last is not None:
        yield last, run


def _spans(metadata: pq.FileMetaData, end: int) -> list[tuple[int, int]]:
    """Where each row group's bytes lie, headers of pages too, which pages' own checksums do not cover."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    starts = [min(c.dictionary_page_offset or c.data_page_offset for c in each) for each in columns]
    return [*zip([0, *starts[1:]], [*starts[1:], end], strict=True)] if starts else []


def seal(path: Path) -> None:
    """Put checksums of all row groups before the footer, where readers do not look, and one of these and the footer."""
    metadata = pq.read_metadata(path)
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        start = file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
        footer, sums = file.read(), b""
        for low, high in _spans(metadata, start):
            file.seek(low)
            sums += hashlib.sha256(file.read(high - low)).digest()
        file.seek(start)
        file.write(sums + SEAL + hashlib.sha256(sums + footer).digest() + footer)


def opened(path: Path) -> tuple[pq.ParquetFile, Callable[[Iterable[int]], None]]:
    """A parquet, its footer compared with its checksum, and a function that does so with row groups: the files that it
    replaced are gone. Both raise ValueError; in files of before there was a seal, pages have checksums alone."""
    file = pa.OSFile(str(path))
    file.seek(max(0, file.size() - 8))
    start = file.size() - 8 - int.from_bytes(file.read(4), "little") - len(SEAL) - 32
    file.seek(max(0, start))
    found, footer = file.read(len(SEAL) + 32), file.read()
    file.seek(0)
    opened = pq.ParquetFile(file, page_checksum_verification=True)
    if start < 0 or not found.startswith(SEAL):
        return opened, lambda groups: None
    end = start - 32 * opened.num_row_groups
    file.seek(max(0, end))
    sums = file.read(32 * opened.num_row_groups)
    if found[len(SEAL) :] != hashlib.sha256(sums + footer).digest():
        raise ValueError("checksum of its footer differs")
    spans = _spans(opened.metadata, end)

    def compare(groups: Iterable[int]) -> None:
        for i in groups:
            low, high = spans[i]
            file.seek(low)
            if hashlib.sha256(file.read(high - low)).digest() != sums[32 * i : 32 * i + 32]:
                raise ValueError(f"checksum of row group {i} differs")

    return opened, compare


def _table(path: Path, columns: list[str] | None = None) -> pa.Table:
    file, compare = opened(path)
    compare(range(file.num_row_groups))
    return file.read(columns=columns)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, LookupError, ValueError, AttributeError, TypeError, ArithmeticError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {said}); move it away") from error


def read(path: Path, below: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, run) of one parquet, in the order of paths; `below` a folder ("uchida/") only. Raises UserError."""
    with reading(path):
        table = _table(path)
        if below:
            if "whole" not in table.column_names:
                return  # somebody else's file in a folder further up
            table = table.filter(pc.starts_with(table["file"].cast("string"), below))
        yield from runs_of(table)


def columns(path: Path) -> dict[str, list]:
    """What bench.store.load reads, of a whole parquet, without its runs: several times faster. Raises UserError."""
    out: dict[str, list] = {name: [] for name in COLUMNS}
    with reading(path):
        needed = [*ROW_FIELDS, "whole", "controls", "config.attack", "config.verify"]
        for part in _columns(_table(path, needed)):
            for i, names in enumerate(part["whole"]):
                for name in names.split() if names else ():
                    part[name][i] = int(part[name][i])
            for name in ROW_FIELDS:
                out[name] += part[name]
            out["goal"] += [node["goal"] for node in part["config.attack"]]
            for name in ("max_damage", "alpha"):
                out[name] += [node[name] for node in part["config.verify"]]
            for name in CONTROLS:
                out[name] += [(tried or {}).get(name) for tried in part["controls"]]
    return out


def find(path: Path, name: str) -> dict[str, Any] | None:
    """The run whose file had this name, or None. Reads the statistics and one or two row groups. Raises UserError."""
    with reading(path):
        file, compare = opened(path)
        at = file.schema_arrow.get_field_index("file")
        ranges = [file.metadata.row_group(i).column(at).statistics for i in range(file.num_row_groups)]
        groups = [i for i, s in enumerate(ranges) if s is None or s.min <= name <= s.max]
        compare(groups)
        table = file.read_row_groups(groups)
        return next((run for _, run in runs_of(table.filter(pc.equal(table["file"], name)))), None)
