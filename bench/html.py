"""report.html: one page that opens from disk, asks no network for anything, and is the same for the same rows.

Tables are plain HTML, which DataTables (from the package itables) makes sortable and searchable; figures are
plotly.js's (bench.interactive), drawn when they are scrolled to; a cell's provenance is shown by its anchor (:target).
The numbers are those of the terminal's tables: texts come from bench.report, bench.plots and bench.cost.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from bench import cost, interactive, readings, store
from bench.command import command
from bench.markup import START, datatables, figure, inert, leading, num, table, td, weighed
from bench.metrics import missing
from bench.plots import BEFORE, CELL, KINDS, ber, claim, interval, number, outcomes, places, unit
from bench.tables import Table

JUDGED = {"held": "good", "failed": "bad", "inconclusive": "warn"}
MOST_POINTS, MOST_FIGURES, MOST_CELLS = 3000, 150, 1500  # what a browser is asked to hold


@dataclass(frozen=True)
class Content:
    """What the page shows: labelled rows (bench.report.variants), every aggregated point, the untouched models, the
    summary and the controls with their legends, what is read from outputs, costs and their table, the runs and the
    folder they were read from, and claims or None."""

    df: pd.DataFrame
    points: pd.DataFrame
    start: pd.DataFrame
    summary: Table
    legend: str
    checks: Table
    checked: str
    pictures: Table
    spent: pd.DataFrame
    prices: Table
    runs: list[dict[str, Any]]
    folder: Path
    claims: list[dict[str, Any]] | None


def page(content: Content) -> str:
    """The whole page. Nothing in it depends on when or where it was made."""
    cells = outcomes(content.df)
    anchors = _anchors(content.df)
    sections = {
        "summary": ("Summary", _summary(content, cells, anchors)),
        "controls": ("Controls", _controls(content)),
        "cost": ("Cost of removal", _cost(content, anchors)),
        "tradeoff": ("Damage and bit error rate", _tradeoff(content, cells, anchors)),
        "fidelity": ("Fidelity", _fidelity(content, cells, anchors)),
        "claims": ("Claims", _claims(content.claims, {run["rows"][0]["run_id"] for run in content.runs})),
        "curves": ("Attack by attack", _curves(content, cells, anchors)),
        **({"pictures": ("Pictures", _pictures(content))} if content.pictures.rows else {}),
        "points": ("Every point", _points(content, cells, anchors)),
        "provenance": ("Provenance", _provenance(content, cells, anchors)),
    }
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, (title, _) in sections.items())
    body = "".join(f'<section id="{n}"><h2>{escape(t)}</h2>{text}</section>\n' for n, (t, text) in sections.items())
    tables, table_css = datatables()
    kinds = "".join(f".{kind} {{ background: {back}; color: {ink}; }}\n" for kind, (_, back, ink) in KINDS.items())
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    icon = "data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22/%3E"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>Watermark benchmark</title>\n<link rel="icon" href="{icon}">\n'
        f"<style>{inert(table_css, 'style')}</style>\n<style>{css}{kinds}</style>\n"
        f"<script>{inert(get_plotlyjs(), 'script')}</script>\n</head>\n<body>\n"
        f"<header><h1>Watermark benchmark</h1>{_facts(content)}</header>\n<nav><ul>{links}</ul></nav>\n"
        f"<main>\n{body}</main>\n<footer>Made by <code>python -m bench.report</code> from run files alone.</footer>\n"
        f'<script type="module">{START % tables}</script>\n</body>\n</html>\n'
    )


def _facts(content: Content) -> str:
    df = content.df
    named = {
        "models, data": ", ".join(f"{model} on {data}" for model, data in sorted(places(df))[:12])
        + f" and {len(places(df)) - 12} more" * (len(places(df)) > 12),
        "methods": ", ".join(sorted(set(df["method_label"]))),
        "attacks": ", ".join(sorted({a for a in df["attack_label"] if a != "none"})) or "none",
        "runs": f"{df['run_id'].nunique():,} with {len(df):,} rows; seeds {_list(sorted(set(df['seed'])))}",
        "judged at": "; ".join(
            f"alpha {number(alpha)}, at most {limit:g} points of damage"
            for alpha, limit in sorted(df[["alpha", "max_damage"]].drop_duplicates().itertuples(index=False, name=None))
        ),
        "commit": ", ".join(sorted({str(c) for c in df["commit"] if not missing(c)})) or "not recorded",
    }
    return f'<dl class="facts">{"".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in named.items())}</dl>'


def _list(values: Sequence[Any], most: int = 12) -> str:
    return ", ".join(map(str, values[:most])) + f" and {len(values) - most} more" * (len(values) > most)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _anchors(df: pd.DataFrame) -> dict[tuple, str]:
    """The id of each cell's provenance, by CELL: readable, and unique by its number."""
    keys = [*df.groupby(CELL, sort=False).groups]
    return {key: f"cell-{i}-{_slug(f'{key[0]}-{key[1]}')}" for i, key in enumerate(keys, 1)}


def _anchor(anchors: dict[tuple, str]) -> Callable[[Any], str]:
    """The id a point's runs are found at; an untouched model's are those of attack=none, or of whichever came first."""
    untouched: dict[tuple, str] = {}
    for key, name in sorted(anchors.items(), key=lambda item: item[0][1] != "none"):
        untouched.setdefault((key[2], *key[4:]), name)

    def at(p: Any) -> str:
        if p.attack == "none":
            return untouched.get((p.method_label, p.model, p.data), "")
        return anchors.get(tuple(getattr(p, name) for name in CELL), "")

    return at


def _flagged(cells: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(method label, model, data) of which nothing can be said, and why in a word."""
    bad = cells[cells["kind"] == "invalid"]
    return {(c.method_label, c.model, c.data): c.text for c in bad.itertuples()}


def _of(made: Table, row: list[str], only: tuple[str, str]) -> tuple[str, str, str]:
    """(method label, model, data) of a table's row; `only`: the place where rows do not say it."""
    return (row[0], row[1], row[2]) if made.keys > 1 else (row[0], *only)


def _grid(made: Table, cells: pd.DataFrame, anchors: dict[tuple, str]) -> str:
    """A table of methods by attacks, each cell coloured by its kind and leading to its provenance."""
    known = {(c.method_label, c.model, c.data, c.attack_label): c for c in cells.itertuples()}
    only, at = places(cells)[0] if len(cells) else ("", ""), _anchor(anchors)
    rows = []
    for row in made.rows:
        here, out = _of(made, row, only), []
        for j, text in enumerate(row):
            cell = known.get((*here, made.head[j][1])) if j >= made.keys else None
            if cell is not None:
                out.append(td(text, weighed(cell.text, cell.kind), f"cell {cell.kind}", at(cell)))
            elif "ALARM" in text:
                out.append(td(text, text, "cell invalid"))
            else:
                out.append(td(text, leading(text) if j >= made.keys else None))
        rows.append(out)
    head = [name for _, name in made.head]
    notes = "".join(f"<li>[{i}] {escape(note)}</li>" for i, note in enumerate(made.notes, 1))
    pick = head[: made.keys]
    return table(head, rows, pick, made.caption) + (f'<ol class="notes">{notes}</ol>' if notes else "")


def _summary(content: Content, cells: pd.DataFrame, anchors: dict[tuple, str]) -> str:
    text = "<p>A cell leads to its runs, its configuration and the command that repeats it.</p>"
    text += _grid(content.summary, cells, anchors) + f'<p class="legend">{escape(content.legend)}</p>'
    attacks = [name for _, name in content.summary.head if name in set(cells["attack_label"])]
    if (cells["method"] != "none").any():
        text += figure(interactive.heat_map(cells, attacks, _anchor(anchors)), 150 + 82 * len(attacks))
    return text


def _controls(content: Content) -> str:
    """Both controls of every mark; a row that failed is INVALID's colour."""
    made, rows = content.checks, []
    for i, row in enumerate(made.rows):
        bad = any((i, j) in made.style for j in range(len(row)))
        rows.append([td(t, leading(t), "cell invalid" if bad else "") for t in row])
    if not rows:
        return "<p>No marked model was measured.</p>"
    head = [name for _, name in made.head]
    return table(head, rows, head[: made.keys], made.caption) + f'<p class="legend">{escape(content.checked)}</p>'


def _pictures(content: Content) -> str:
    made = content.pictures
    rows = [[td(text, leading(text)) for text in row] for row in made.rows]
    head = [name for _, name in made.head]
    return table(head, rows, head[: made.keys], made.caption) + f'<p class="legend">{escape(readings.LEGEND)}</p>'


def _cost(content: Content, anchors: dict[tuple, str]) -> str:
    if content.spent.empty:
        return "<p>No attack that could remove a mark was run.</p>"
    text = _grid(content.prices, content.spent, anchors)
    text += f'<p class="legend">{escape(cost.legend(content.spent))}</p>'
    attacks = [*dict.fromkeys(content.points["attack_label"])]
    for place, block in _by_place(content.spent):
        text += place + figure(interactive.costs(block, attacks, _anchor(anchors)), 460)
    return text


def _by_place(df: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """(heading, rows) of each model and data; no heading where there is one."""
    several = len(places(df)) > 1
    for shown, ((model, data), block) in enumerate(df.groupby(["model", "data"], sort=False)):
        if shown == MOST_FIGURES:
            yield f"<p>Figures of the first {MOST_FIGURES} of {len(places(df))} pairs of model and data.</p>", block[:0]
            return
        yield f"<h3>{escape(f'{model}, {data}')}</h3>" * several, block


def _tradeoff(content: Content, cells: pd.DataFrame, anchors: dict[tuple, str]) -> str:
    text = (
        "<p>Every point that an attack on the mark made. Lines: each method's removal frontier, the least damage at "
        "which each bit error rate was reached. Above its dotted line a mark is not detected; left of the upright "
        "one the model still works.</p>"
    )
    spots = cost.tradeoff(content.points)
    for place, block in _by_place(spots):
        if len(block):
            here = (block["model"].iloc[0], block["data"].iloc[0])
            key = (content.start["model"] == here[0]) & (content.start["data"] == here[1])
            start = content.start[key & (content.start["knob"] == "none") & (content.start["method"] != "none")]
            bad = {label for label, *at in _flagged(cells) if (at[0], at[1]) == here}
            text += place + figure(interactive.scatter(block, start, bad, _anchor(anchors)), 340)
    return text if len(spots) else "<p>No attack that could remove a mark was run.</p>"


def _fidelity(content: Content, cells: pd.DataFrame, anchors: dict[tuple, str]) -> str:
    marked = content.start[(content.start["method"] != "none") & (content.start["knob"] == "none")]
    if marked["fidelity"].isna().all():
        return "<p>No marked model was measured beside its host.</p>"
    fig = interactive.fidelity(content.start, _flagged(cells), _anchor(anchors))
    said = "host − victim, before any attack: what embedding cost. Bars are 95% t intervals over seeds."
    return f"<p>{said}</p>" + figure(fig, 340)


def _claims(claims: list[dict[str, Any]] | None, known: set[str]) -> str:
    if claims is None:
        return "<p>No claims were tried. <code>python -m bench.claims</code> runs and judges them.</p>"
    rows = []
    for item in claims:
        ids = [item["run_ids"]] if isinstance(item["run_ids"], str) else [*(item["run_ids"] or [])]
        runs = ", ".join(f'<a href="#run-{escape(i)}">{escape(i)}</a>' if i in known else escape(str(i)) for i in ids)
        seeds = _list(item["seeds"]) if isinstance(item["seeds"], list) else str(item["seeds"])
        words = [td(str(item["name"])), td(str(item["paper"]))]
        words += [td(str(item[key]), kind="text") for key in ("claim", "criterion")]
        words += [td(str(item["verdict"]), kind=f"cell {JUDGED.get(item['verdict'], 'na')}")]
        words += [td(str(item["text"]), kind="text"), *(td(str(item[key])) for key in ("data", "model"))]
        words += [td(seeds), f'<td class="run">{runs}</td>', f"<td><code>{escape(str(item['command']))}</code></td>"]
        rows.append(words)
    count = Counter(str(item["verdict"]) for item in claims)
    head = [
        "name",
        "paper",
        "claim",
        "criterion",
        "verdict",
        "what was seen",
        "data",
        "model",
        "seeds",
        "runs",
        "command",
    ]
    caption = ", ".join(f"{verdict} {n}" for verdict, n in sorted(count.items()))
    return table(head, rows, ("paper", "verdict", "data", "model"), caption)


def _curves(content: Content, cells: pd.DataFrame, anchors: dict[tuple, str]) -> str:
    text = (
        "<p>Bit error rate and utility against the attack's strength: a line is the mean over seeds, its band the 95% "
        "interval (Wilson over pooled bits; t for utility), small dots are the seeds. A click on a point leads to its "
        "runs.</p>"
    )
    key, several, drawn, left = ["attack_label", "model", "data"], len(places(content.df)) > 1, 0, 0
    good = content.points[(content.points["status"] == "ok") & ~content.points["knob"].isin(BEFORE)]
    rows = content.df[content.df["status"] == "ok"]
    rows_of = dict(iter(rows.groupby(key, sort=False)))
    start_of = dict(iter(content.start.groupby(["model", "data"], sort=False)))
    cells_of = dict(iter(cells.groupby(key, sort=False)))
    for at, made in good.groupby(key, sort=False):
        if (drawn := drawn + 1) > MOST_FIGURES:
            left += 1
            continue
        begun = start_of[at[1:]]
        begun = begun[begun["method_label"].isin(set(made["method_label"]))]
        block = pd.concat([begun, made], ignore_index=True)
        bad = cost.flagged(cells_of[at]) if at in cells_of else set()
        if made["goal"].iloc[0] == "forge" and made["claim_log10_p"].notna().any():
            fig = interactive.forged(block, bad, _anchor(anchors))
        else:
            fig = interactive.curves(block, rows_of[at], bad, _anchor(anchors))
        title = ", ".join(at if several else at[:1])
        text += f"<h3>{escape(title)}</h3>" + figure(fig, 90 + 240 * made["knob"].nunique())
    more = f"<p>{left} more are not drawn here: see <code>figures/</code>.</p>" if left else ""
    return text + more if drawn else "<p>No attack was run.</p>"


def _points(content: Content, cells: pd.DataFrame, anchors: dict[tuple, str]) -> str:
    shown, at = content.points[:MOST_POINTS], _anchor(anchors)
    several, bad = len(places(content.df)) > 1, _flagged(cells)
    rows = []
    for p in shown.itertuples():
        digits, name = unit(p.utility_name)[1], p.utility_name
        damage = interval(p.damage, p.damage_half, name)
        row = [td(p.attack_label), td(p.method_label), *([td(p.model), td(p.data)] * several)]
        row += [td({"none": "victim"}.get(p.knob, p.knob)), num(number(p.strength), p.strength), num(str(p.n), p.n)]
        row += [num(ber(p), p.ber), num("–" if missing(p.log10_p) else f"{p.log10_p:.1f}", p.log10_p)]
        row += [num(claim(p), p.claim_ber), num(interval(p.utility, p.utility_half, name), p.utility)]
        row += [num(damage, None if missing(p.damage) else round(p.damage, digits + 3))]
        word = bad.get((p.method_label, p.model, p.data)) if p.attack != "none" and p.status == "ok" else None
        row += [td(f"{p.verdict} ({word})" if word else p.verdict), td(p.reason, kind="text") if p.reason else td("")]
        row.append(td("runs", kind="link", href=at(p)) if at(p) else td(""))
        rows.append(row)
    head = [
        "attack",
        "method",
        *(["model", "data"] * several),
        "knob",
        "strength",
        "seeds",
        "BER",
        "log10 p",
        "claim BER",
        "utility",
    ]
    head += ["damage", "verdict", "reason", "provenance"]
    cut = f"The first {len(shown):,} of {len(content.points):,} points; all are in tables/strengths.csv. "
    note = (cut if len(shown) < len(content.points) else "") + (
        "Means over seeds with their 95% intervals; skipped and failed ones have lines of their own. "
        "* owner's mark not detected, ! attacker's claim passes, in ( ) for some seeds only."
    )
    return table(head, rows, ("attack", "method", "model", "data", "knob", "verdict"), note)


def _provenance(content: Content, cells: pd.DataFrame, anchors: dict[tuple, str]) -> str:
    said = {tuple(getattr(c, name) for name in CELL): c for c in cells.itertuples()}
    configs = {(run["rows"][0]["run_id"], run["rows"][0]["created_at"]): run["config"] for run in content.runs}
    compacted = (content.folder / store.GATHERED).is_file()
    text = '<p class="hint">Follow a cell of the summary, a point of a figure or a line of the table above.</p>\n'
    for i, (key, g) in enumerate(content.df.groupby(CELL, sort=False)):
        cell, first = dict(zip(CELL, key, strict=True)), g.iloc[0]
        rows = []
        for (run_id, seed), r in g.groupby(["run_id", "seed"], sort=True):
            file = f"{cell['method']}/{cell['attack']}/{run_id}.json"
            if not (content.folder / file).is_file():
                file = f"in {store.GATHERED}" if compacted else "–"
            row = r.iloc[0]
            states = ", ".join(f"{n} {s}" for s, n in sorted(Counter(r["status"]).items()))
            words = [run_id, seed, file, row["commit"], row["device"], row["created_at"], states]
            plain = ["–" if missing(word) else escape(str(word)) for word in words]
            rows.append(f'<tr id="run-{plain[0]}">{"".join(f"<td>{word}</td>" for word in plain)}</tr>')
        title = f"{cell['method_label']} × {cell['attack_label']}, {cell['model']}, {cell['data']}"
        outcome = said.get(key)
        told = f": {outcome.text}" + f" ({outcome.reason})" * bool(outcome.reason) if outcome else ""
        config = configs[first["run_id"], first["created_at"]]
        line = command(config, (int(seed) for seed in g["seed"]))
        whole = (
            json.dumps(config, indent=1, ensure_ascii=False) if i < MOST_CELLS else "(too many cells: see the run file)"
        )
        names = "".join(f"<th>{name}</th>" for name in ("run", "seed", "file", "commit", "device", "made", "rows"))
        text += (
            f'<section class="provenance" id="{anchors[key]}"><h3>{escape(title)}</h3><p>Outcome{escape(told)}. '
            '<a href="#summary">Back to the summary</a></p>'
            f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            f'<p>To repeat it:</p><pre class="command">{escape(line)}</pre><details><summary>Configuration of seed '
            f"{escape(str(first['seed']))}, resolved</summary><pre>{escape(whole)}</pre></details></section>\n"
        )
    return text
