"""One table, for every format: terminal and markdown; bench.report.paper has LaTeX."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.report.style import TERMINAL
from bench.report.words import lines

if TYPE_CHECKING:
    import pandas as pd

BOLD = ("best", "invalid")  # kinds that are bold in every format
MD = str.maketrans({c: f"\\{c}" for c in "\\|*_`<~"})
# What is a number, with its interval, its marks and its notes: flush right. All else is text.
NUMERIC = re.compile(
    r"[+-]?[\d,]*\.?\d+(e-?\d+)?%?( ± [\d.]+)?( (to|of) [\d.]+%?)?( \[[\d., +-]+\])?( (pts|s))?[\s*!ai()]*( \[\d+\])*"
)


class Cell(NamedTuple):
    """A cell of a table: its text; the kind of outcome it tells (a key of style.KINDS, or "best"); the configuration
    it tells it of (the values of words.CELL)."""

    text: str
    kind: str = ""
    at: tuple = ()


def csv(frame: pd.DataFrame) -> str:
    """A frame as text, in which no cell is taken for a formula: one that begins like a formula, and is no number, is
    put behind an apostrophe."""
    import pandas as pd  # and not for whoever shows a table on a terminal

    safe = frame.copy()
    for name in safe.select_dtypes(exclude=["number", "bool"]).columns:
        texts = safe[name].astype("string")
        formula = texts.str.match(r"[=+\-@\t\r]").fillna(False) & pd.to_numeric(texts, errors="coerce").isna()
        safe.loc[formula.to_numpy(bool), name] = "'" + texts[formula]
    return safe.to_csv(index=False)


@dataclass
class Table:
    """One table for every format: `head` holds (group, name) of each column, the first `keys` are its keys.

    `turns`: in a paper its rows, of methods, are columns. For the terminal alone: columns that are flush right, blanks
    between columns, characters a key may be wide before it is broken.
    """

    title: str
    caption: str
    head: list[tuple[str, str]]
    keys: int
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    turns: bool = False
    right: Collection[int] = ()
    gap: int = 2
    room: int = 24

    def add(self, *cells: str | Cell) -> None:
        """One more row."""
        self.rows.append([Cell(cell) if isinstance(cell, str) else cell for cell in cells])

    def note(self, text: str) -> str:
        """The mark of a footnote; one text has one mark."""
        if (text := " ".join(text.split())) not in self.notes:
            self.notes.append(text)
        return f" [{self.notes.index(text) + 1}]"

    @property
    def texts(self) -> list[list[str]]:
        """What the cells say."""
        return [[cell.text for cell in row] for row in self.rows]

    def numeric(self, j: int) -> bool:
        """Whether a column holds numbers, and nothing else but dashes."""
        texts = [row[j].text for row in self.rows if row[j].text not in ("–", "")]
        return bool(texts) and all(map(NUMERIC.fullmatch, texts))

    def only(self, columns: Sequence[int]) -> Table:
        """The table with these columns alone."""
        rows = [[row[j] for j in columns] for row in self.rows]
        return replace(self, head=[self.head[j] for j in columns], rows=rows)

    def turned(self) -> Table:
        """Rows as columns and columns as rows: further keys of rows become groups above the columns' heads."""
        head = [("", ""), *(((", ".join(cell.text for cell in row[1 : self.keys])), row[0].text) for row in self.rows)]
        rows = [[Cell(name), *(row[j] for row in self.rows)] for j, (_, name) in enumerate(self.head) if j >= self.keys]
        return replace(self, head=head, keys=1, rows=rows, turns=False)

    def body(self, escape: dict[int, str], bold: str) -> list[list[str]]:
        """The cells, escaped, the bold ones put into the format `bold`."""
        rows = [[(cell.text.translate(escape), cell.kind in BOLD) for cell in row] for row in self.rows]
        return [[bold % text if strong else text for text, strong in row] for row in rows]


def markdown(tables: Iterable[Table], legend: str) -> str:
    """For a README: GitHub's dialect, columns aligned for whoever reads the source."""
    parts = [legend.translate(MD)]
    for t in tables:
        cells = [[f"{group} {name}".strip().translate(MD) for group, name in t.head], *t.body(MD, "**%s**")]
        cells = [[unlinked(text) for text in row] for row in cells]
        width = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        right = [j >= t.keys and t.numeric(j) for j in range(len(t.head))]
        cells.insert(1, ["-" * (w - 1) + ":" if r else "-" * w for r, w in zip(right, width, strict=True)])
        rows = [" | ".join(c.ljust(w) for c, w in zip(row, width, strict=True)) for row in cells]
        notes = [f"- [{i}] {note.translate(MD)}" for i, note in enumerate(t.notes, 1)]
        parts += [f"**{t.title.translate(MD)}** ({t.caption})", "\n".join(f"| {row} |" for row in rows)]
        parts += ["\n".join(notes)] if notes else []
    return unlinked("\n\n".join(parts)) + "\n"


def unlinked(text: str) -> str:
    """Markdown in which an interval and the mark behind it, [.270, .403](*), are no link."""
    return text.replace("](", "]\\(")


def layout(table: Table, width: int) -> tuple[list[str], list[list[str]], list[list[int]]]:
    """(head, cells, pieces) as a terminal of `width` shows them: texts broken into lines, and the columns of each piece
    that it is cut into where it is too narrow; its keys come with each piece, the columns of a group stay together."""
    room = [table.room if j < table.keys else 99 if group else 13 for j, (group, _) in enumerate(table.head)]
    cells = [[lines(text, r) for text, r in zip(row, room, strict=True)] for row in table.texts]
    head, units = [], []
    for j, (group, name) in enumerate(table.head):
        first = not group or group != table.head[j - 1][0]
        head.append(f"{lines(group, 22)}\n{lines(name, room[j])}".strip() if first else name)
        if j >= table.keys:
            units.append([j]) if first else units[-1].append(j)
    wide = [table.gap + max(map(len, "\n".join(column).split("\n"))) for column in zip(head, *cells, strict=True)]
    pieces: list[list[int]] = []
    for columns in units:
        if not pieces or sum(wide[j] for j in pieces[-1] + columns) - table.gap > width:
            pieces.append([*range(table.keys)])
        pieces[-1] += columns
    return head, cells, pieces


def show(table: Table, console: Any) -> None:
    """Print a table, in as many pieces as the console is too narrow for."""
    from rich import box
    from rich.table import Table as Rich
    from rich.text import Text

    head, cells, pieces = layout(table, console.width)
    bottom = "bottom" if table.head[-1][0] else "top"
    console.print(Text.assemble((table.title, "bold"), f" ({table.caption})" if table.caption else ""))
    for piece in pieces:
        rich = Rich(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, table.gap - 1, 0, 0))
        for j in piece:
            sides = {"justify": "right" if j in table.right else "left", "vertical": bottom}
            rich.add_column(Text(head[j]), **sides)
        for row, texts in zip(table.rows, cells, strict=True):
            rich.add_row(*(Text(texts[j], TERMINAL.get(row[j].kind, "")) for j in piece))
        console.print(rich, "", sep="\n")
    for i, note in enumerate(table.notes, 1):
        console.print(Text(f"[{i}] {note}" + "\n" * (i == len(table.notes))))
