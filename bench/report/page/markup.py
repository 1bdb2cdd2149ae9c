"""The pieces report.html is put together from: cells, tables that sort and filter, figures, the libraries' own text."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import itables
from plotly.offline import get_plotlyjs

from bench.metrics import missing
from bench.report.style import KINDS
from bench.report.tables import Table
from bench.report.words import natural


def datatables() -> tuple[str, str]:
    """The DataTables bundle of the package itables: a module as data: address, and its style sheet."""
    folder = Path(itables.__file__).parent / "html"
    module = b64encode((folder / "dt_bundle.js").read_bytes()).decode()
    return f"data:text/javascript;charset=utf-8;base64,{module}", (folder / "dt_bundle.css").read_text(encoding="utf-8")


def inert(text: str, tag: str) -> str:
    """A library's text within its element: nothing in it may close that."""
    return re.sub(rf"</(?={tag})", r"<\\/", text, flags=re.IGNORECASE)


@cache
def libraries() -> dict[str, str]:
    """What a page shows its tables and figures with, by the file that it may lie in: styles and classic scripts, which
    a page that was opened from disk may load, as it may no modules."""
    tables, table_css = datatables()
    own = {kind: Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    kinds = "".join(f".{name} {{ background: {kind.back}; color: {kind.ink}; }}\n" for name, kind in KINDS.items())
    bundle = f"const TABLES = {json.dumps(tables)};\n"
    styles = {"tables.css": table_css, "page.css": own["css"] + kinds}
    return styles | {"plotly.js": get_plotlyjs(), "tables.js": bundle, "page.js": own["js"]}


def document(title: str, about: str, links: Mapping[str, str], body: str, made: str, assets: str = "") -> str:
    """A whole page: `about` below its title, `links` (address: name) at the top, what it was `made` by at the foot.

    assets: address of the folder where `libraries` lie; without one they are in the page, which then is alone enough.
    """
    styles, scripts = "", ""
    for name, text in libraries().items():
        inside = not assets
        if name.endswith(".css"):
            where = f'<link rel="stylesheet" href="{assets}/{name}">'
            styles += (f"<style>{inert(text, 'style')}</style>" if inside else where) + "\n"
        else:
            late = ' type="module"' if name == "page.js" else ""  # when all elements are there
            where = f'<script{" defer" if late else ""} src="{assets}/{name}"></script>'
            scripts += (f"<script{late}>\n{inert(text, 'script')}</script>" if inside else where) + "\n"
    icon = "data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22/%3E"
    entries = "".join(f'<li><a href="{href}">{escape(name)}</a></li>' for href, name in links.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="{icon}">\n{styles}{scripts}</head>\n<body>\n'
        f"<header><h1>{escape(title)}</h1>{about}</header>\n<nav><ul>{entries}</ul></nav>\n"
        f"<main>\n{body}</main>\n<footer>{made}</footer>\n</body>\n</html>\n"
    )


def td(text: str, order: Any = None, kind: str = "", href: str = "") -> str:
    """A table cell, escaped; `order` is what it is sorted by where that is not its text, `kind` a class ("cell KIND":
    coloured as that kind of outcome), `href` an anchor on the page, or the address of another."""
    by = "" if order is None else f' data-order="{escape(str(order))}"'
    inner = re.sub(r"\([^()]{,12}\)", r"<span>\g<0></span>", escape(text)) if kind.startswith("cell") else escape(text)
    inner = f'<a href="{href if ".html" in href else f"#{href}"}">{inner}</a>' if href else inner
    if kind.startswith("cell"):
        _, _, colour = kind.partition(" ")
        inner = inner.replace("<a ", f'<a class="{colour}" ', 1) if href else f'<span class="{colour}">{inner}</span>'
        kind = "cell"
    return f"<td{f' class={kind!r}' if kind else ''}{by}>{inner}</td>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], pick: Iterable[str] = (), caption: str = "") -> str:
    """A table that DataTables takes up; columns in `pick` are filtered from a list of what occurs in them."""
    names = "".join(f"<th{' class=pick' * (name in set(pick))}>{escape(name)}</th>" for name in head)
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    told = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f'{told}<table class="data"><thead><tr>{names}</tr></thead>\n<tbody>{lines}</tbody></table>'


def leading(text: str) -> str:
    """What a text is sorted by: its leading number, nothing for "–" (which would make numbers sort as text)."""
    found = re.match(r"[+-]?\d+(?:\.\d+)?(?:e-?\d+)?", text)
    return found[0].lstrip("+") if found else "" if text == "–" else text


def slug(text: str) -> str:
    """A text as part of an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def grid(made: Table, anchors: Mapping[tuple, str]) -> str:
    """A table of the report: outcomes are coloured by their kind and lead to their provenance."""
    rows = []
    # Keys with numbers in them sort by those.
    numbered = [any(natural(row[j].text) != row[j].text for row in made.rows) for j in range(made.keys)]
    for row in made.rows:
        out = [td(cell.text, natural(cell.text) if by else None) for cell, by in zip(row, numbered, strict=False)]
        for text, kind, at in row[made.keys :]:
            known = kind in KINDS
            order = weighed(text, kind) if known else leading(text)
            out.append(td(text, order, f"cell {kind}" if known else "", anchors.get(at, "")))
        rows.append(out)
    head = [name for _, name in made.head]
    notes = "".join(f"<li>[{i}] {escape(note)}</li>" for i, note in enumerate(made.notes, 1))
    whole = table(head, rows, head[: made.keys], made.caption)
    return whole + (f'<ol class="notes">{notes}</ol>' if notes else "")


def weighed(text: str, kind: str) -> str:
    """Outcomes sort by kind, then by the number they name."""
    found = re.search(r"-?\d+\.\d+", text)
    value = float(found[0]) if found else 0.0
    return f"{[*KINDS].index(kind)} {value + 1e6:014.3f} {text}"


def num(text: str, value: Any) -> str:
    """A cell that is sorted by its number."""
    return td(text, "" if missing(value) else f"{value:.6g}", "num")


def figure(fig: Any, width: float = 0) -> str:
    """A figure for the script to draw once it is seen; `width`: the least it needs (px)."""
    text = fig.to_json()  # which writes < as \u003c: no text can end the element
    height = fig.layout.height or 450
    return (
        f'<div class="wide"><div class="figure" style="min-width:{width:g}px;height:{height:g}px"></div>'
        f'<script type="application/json">{text}</script></div>\n'
    )
