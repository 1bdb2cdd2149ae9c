"""Images that a table of labels names: a CSV file with a path and a label a row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from bench.data.decoding import decode_all, read_all
from bench.data.files import label_index, values_of
from bench.data.source import Data, Decoded, apart, hold_out, stamp
from bench.errors import ConfigError, UserError, near, within

SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
SHOWN = 3  # of many that are wrong alike


class Line(NamedTuple):
    """A row: where it stands in the file, the image that it names, its label as written, its split ("": none said)."""

    number: int
    file: Path
    label: str
    split: str


@dataclass(frozen=True)
class Csv(Data):
    """path: the table, UTF-8 with a header, cells apart by comma, semicolon or tab. path_column, label_column: names of
    its columns; paths are relative to `root`, or where that is null to the table's folder. split_column: `train`,
    `test` or `validation` (which is the test set where no row says test, else part of training); where there is no
    such column, `test` of the rows are held out."""

    path: str
    root: str | None
    path_column: str
    label_column: str
    split_column: str
    test: float = within(0, 1, ends="()")

    counted: ClassVar[bool] = True
    located: ClassVar[tuple[str, ...]] = (*Data.located, "path_column", "split_column")

    @property
    def name(self) -> str:
        return self.label or Path(self.path).stem

    @cached_property
    def _lines(self) -> list[Line]:
        """The table's rows. Raises ConfigError, naming columns, lines and files, for what cannot be."""
        table = Path(self.path).expanduser()
        if table.is_dir():
            found = sorted(p.name for p in table.glob("*.csv"))
            raise ConfigError(f"data.path={self.path} is a folder: give the table, {table / (found or ['x.csv'])[0]}")
        try:
            text = table.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.path={self.path} cannot be read as UTF-8 text: {error}") from error
        root = Path(self.root).expanduser() if self.root else table.parent
        lines = [*self._read(text, root)]
        if not lines:
            raise ConfigError(f"{table} has no rows below its header")
        _listed(table, "is not there", [line for line in lines if not line.file.is_file()])
        first: dict[Path, Line] = {}
        _listed(table, "stands there twice", [line for line in lines if first.setdefault(line.file, line) is not line])
        _listed(table, "has no label", [line for line in lines if not line.label])
        if odd := [line for line in lines if line.split and line.split not in SPLITS]:
            where = f"{table}, line {odd[0].number}: {self.split_column}={odd[0].split}"
            raise ConfigError(f"{where}: not known; {near(odd[0].split, SPLITS)}")
        if len({bool(line.split) for line in lines}) > 1:
            missing = next(line.number for line in lines if not line.split)
            raise ConfigError(f"{table}, line {missing}: no {self.split_column}, which other rows have")
        return lines

    def _read(self, text: str, root: Path) -> Iterator[Line]:
        head = text.partition("\n")[0]
        rows = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count), skipinitialspace=True)
        names = [name.strip() for name in rows.fieldnames or []]
        rows.fieldnames = names
        for option in ("path_column", "label_column"):
            if (wanted := getattr(self, option)) not in names:
                has = f"its header has {', '.join(names)}" if any(names) else "it has no header"
                raise ConfigError(f"data.{option}: {self.path} has no column {wanted!r}; {has}")
        for row in rows:
            path, label = ((row[name] or "").strip() for name in (self.path_column, self.label_column))
            if None in row or not path:
                raise ConfigError(f"{self.path}, line {rows.line_num}: {'no path' if not path else 'too many cells'}")
            yield Line(rows.line_num, root / path, label, (row.get(self.split_column) or "").strip().lower())

    def _parts(self) -> tuple[list[Line], list[Line]]:
        """Rows of the training set, and of the test set: none, where no row says so."""
        lines = self._lines
        said = {SPLITS.get(line.split, "train") for line in lines}
        tests = next((split for split in ("test", "validation") if split in said), None)
        parts: tuple[list[Line], list[Line]] = ([], [])
        for line in lines:
            parts[SPLITS.get(line.split) == tests and tests is not None].append(line)
        if not parts[0]:
            raise ConfigError(f"{self.path}: every row is of the {tests} set, none of train")
        return parts

    def source(self) -> dict[str, Any]:
        """The table's content and the images' stamps."""
        rows = [[str(line.file), line.label, line.split] for line in self._lines]
        stamped = stamp([line.file for line in self._lines])
        return {"source": "csv", "size": self.image_size, "test": self.test, "rows": rows, "files": stamped}

    def decode(self) -> Decoded:
        train, test = self._parts()
        labels = [_value(line.label) for line in train]
        if any(isinstance(value, str) for value in labels):
            labels = [line.label for line in train]  # some are words: all are
        words = isinstance(labels[0], str)
        classes = values_of(labels)
        index = label_index(labels, classes, self.label_column)

        def images(lines: list[Line]) -> Tensor:
            return decode_all([line.file.read_bytes for line in lines], [str(p.file) for p in lines], self.image_size)

        made = images(train), index(labels)
        if not test:
            return hold_out(*made, classes, self.test)
        return Decoded(*made, images(test), index([p.label if words else _value(p.label) for p in test]), classes)

    def picture_source(self) -> dict[str, Any]:
        return self.source() | {"size": None}

    def pictures(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        train, test = (
            read_all([line.file.read_bytes for line in lines], [str(line.file) for line in lines], None)
            for lines in self._parts()
        )
        return (train, test) if test else apart(train, self.test)


def _value(label: str) -> int | str:
    """A label as it is sorted: numbers as numbers."""
    return int(label) if label.removeprefix("-").isascii() and label.removeprefix("-").isdigit() else label


def _listed(table: Path, what: str, lines: list[Line]) -> None:
    """Raises UserError that names what is wrong in these lines: the first few, and how many there are."""
    if lines:
        named = ", ".join(f"{line.file} (line {line.number})" for line in lines[:SHOWN])
        more = f" and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else ""
        raise UserError(f"{table}: {what}: {named}{more}", 2)
