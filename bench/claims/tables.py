"""Verdicts as tables: on the terminal, and as files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from bench.progress import console
from bench.report import paper, tables
from bench.report.style import JUDGED, TERMINAL
from bench.store.claims import COLUMNS, place
from bench.store.files import write_text


def write(entries: list[dict[str, Any]], folder: Path) -> list[Path]:
    """claims.csv with every field; claims.md and claims.tex with the numbers as notes. Returns the paths."""
    table = tables.Table(
        "Claims", "verdicts by 95% intervals", [("", n) for n in ("claim", "paper", "on", "verdict")], 3
    )
    for item in entries:
        on = ", ".join([*place(item), f"{len(item['seeds'])} seeds"])
        mark = table.note(f"{item['name']}: {item['claim']}: {item['text']}{known(item)}")
        table.add(item["name"], item["paper"], on, item["verdict"] + mark)
    legend = "held and failed where the interval decides"
    plain = [{k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in item.items()} for item in entries]
    texts = {
        "csv": tables.csv(pd.DataFrame(plain, columns=list(COLUMNS))),
        "md": tables.markdown([table], legend),
        "tex": paper.latex([table], legend, "claims"),
    }
    for kind, text in texts.items():
        write_text(folder / f"claims.{kind}", text)
    return [folder / f"claims.{kind}" for kind in texts]


def known(item: dict[str, Any], before: str = "; ") -> str:
    """What the paper reports, to follow what was measured."""
    return f"{before}published: {item['published']}" if item["published"] else ""


def show(entries: Iterable[dict[str, Any]]) -> None:
    """The table on stdout: verdicts, what the claims say, and the numbers."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column("verdict", no_wrap=True)
    grid.add_column("claim; numbers with 95% intervals")
    for item in entries:
        said = Text.assemble((item["name"], "bold"), f" ({item['paper']}; {', '.join(place(item))})")
        said.append(f"\n{item['claim']}", "italic")
        said.append(f"\n{item['text']}").append(known(item, "\n"), "dim")
        grid.add_row(Text(item["verdict"], style=TERMINAL[JUDGED[item["verdict"]]]), said)
    console().print(grid)
