"""One table, for every format: terminal, markdown, LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from bench.plots import lines

STYLES = {"bad": "red", "warn": "yellow", "good": "green", "invalid": "bold white on red", "failed": "red"}
MD = str.maketrans({c: f"\\{c}" for c in "\\|*_`<~"})
TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "–": "--"}
TEX = str.maketrans(TEX | {"^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$"})


@dataclass
class Table:
    """One table for every format: `head` holds (group, name) of each column, the first `keys` are its keys;
    `style` is a terminal style per (row, column), of which "bold" is bold in every format."""

    title: str
    caption: str
    head: list[tuple[str, str]]
    keys: int
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    style: dict[tuple[int, int], str] = field(default_factory=dict)

    def note(self, text: str) -> str:
        """The mark of a footnote; one text has one mark."""
        if (text := " ".join(text.split())) not in self.notes:
            self.notes.append(text)
        return f" [{self.notes.index(text) + 1}]"

    def body(self, escape: dict[int, str], bold: str) -> list[list[str]]:
        """The cells, escaped, the bold ones put into the format `bold`."""
        strong = {at for at, style in self.style.items() if "bold" in style}
        cells = [[cell.translate(escape) for cell in row] for row in self.rows]
        return [[bold % c if (i, j) in strong else c for j, c in enumerate(row)] for i, row in enumerate(cells)]


def markdown(tables: Iterable[Table], legend: str) -> str:
    """For a README: GitHub's dialect, columns aligned for whoever reads the source."""
    parts = [legend.translate(MD)]
    for t in tables:
        cells = [[f"{group} {name}".strip().translate(MD) for group, name in t.head], *t.body(MD, "**%s**")]
        width = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * w if j < t.keys else "-" * (w - 1) + ":" for j, w in enumerate(width)])
        rows = [" | ".join(c.ljust(w) for c, w in zip(row, width, strict=True)) for row in cells]
        notes = [f"- [{i}] {note.translate(MD)}" for i, note in enumerate(t.notes, 1)]
        parts += [f"**{t.title.translate(MD)}** ({t.caption})", "\n".join(f"| {row} |" for row in rows)]
        parts += ["\n".join(notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def latex(tables: Iterable[Table], legend: str) -> str:
    """For a paper: one table environment each, in the style of the package booktabs."""
    out = [r"% \usepackage{booktabs}"]
    for t in tables:
        top, rules, at = [], "", 1
        for group, columns in groupby(t.head, key=lambda column: column[0]):
            n = len([*columns])
            top.append(rf"\multicolumn{{{n}}}{{c}}{{{group.translate(TEX)}}}")
            rules += rf" \cmidrule(lr){{{at}-{at + n - 1}}}" if group else ""
            at += n
        caption, columns = f"{t.title} ({t.caption}). {legend}", "l" * t.keys + "r" * (len(t.head) - t.keys)
        out += [r"\begin{table}", r"  \centering", rf"  \caption{{{caption.translate(TEX)}}}"]
        out += [rf"  \begin{{tabular}}{{{columns}}}", r"    \toprule"]
        out += [f"    {' & '.join(top)} \\\\", f"   {rules}"] if rules else []
        out += [f"    {' & '.join(name.translate(TEX) for _, name in t.head)} \\\\", r"    \midrule"]
        out += [f"    {' & '.join(row)} \\\\" for row in t.body(TEX, r"\textbf{%s}")]
        out += [r"    \bottomrule", r"  \end{tabular}"]
        out += [rf"  \par\footnotesize [{i}] {note.translate(TEX)}" for i, note in enumerate(t.notes, 1)]
        out += [r"\end{table}", ""]
    return "\n".join(out)


def show(table: Table, console: Any) -> None:
    """Print a table, in as many pieces as the console is too narrow for; its keys come with each piece."""
    from rich import box
    from rich.table import Table as Rich
    from rich.text import Text

    room = [24 if j < table.keys else 99 if group else 13 for j, (group, _) in enumerate(table.head)]
    cells = [[lines(cell, r) for cell, r in zip(row, room, strict=True)] for row in table.rows]
    head, units, keys = [], [], [*range(table.keys)]
    for j, (group, name) in enumerate(table.head):
        first = not group or group != table.head[j - 1][0]
        head.append(f"{lines(group, 22)}\n{lines(name, room[j])}".strip() if first else name)
        if j >= table.keys:
            units.append([j]) if first else units[-1].append(j)  # the columns of a group stay together
    width = [2 + max(map(len, "\n".join(column).split("\n"))) for column in zip(head, *cells, strict=True)]
    pieces: list[list[int]] = []
    for columns in units:
        if not pieces or sum(width[j] for j in pieces[-1] + columns) - 2 > console.width:
            pieces.append([*keys])
        pieces[-1] += columns
    console.print(Text.assemble((table.title, "bold"), f" ({table.caption})"))
    for piece in pieces:
        rich = Rich(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for j in piece:
            rich.add_column(Text(head[j]), vertical="bottom" if table.head[-1][0] else "top")
        for i, row in enumerate(cells):
            rich.add_row(*(Text(row[j], style=table.style.get((i, j), "")) for j in piece))
        console.print(rich, "", sep="\n")
    for i, note in enumerate(table.notes, 1):
        console.print(Text(f"[{i}] {note}" + "\n" * (i == len(table.notes))))
