"""report.html: one page that opens from disk, asks no network for anything, and is the same for the same rows.

Tables are plain HTML, which DataTables (from the package itables) makes sortable and searchable; figures are
plotly.js's, drawn when they are scrolled to; a cell's provenance is shown by its anchor (:target).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from bench.metrics import missing
from bench.report import threads
from bench.report.content import Content, command
from bench.report.figures import interactive, shown
from bench.report.figures.interactive import Anchors
from bench.report.figures.sweeps import sweeps
from bench.report.page.markup import document, figure, grid, num, slug, table, td
from bench.report.style import JUDGED
from bench.report.words import CELL, ber, claim, configuration, interval, natural, number, places, unit
from bench.store.runfile import GATHERED

MOST_POINTS, MOST_FIGURES, MOST_CELLS = 3000, 150, 1500  # what a browser is asked to hold
MADE = "Made by <code>python -m bench.report</code> from run files alone."
CLAIMS = ("name", "paper", "claim", "criterion", "verdict", "what was seen", "published", "data", "model", "seeds")


def page(
    content: Content,
    folders: Sequence[Path],
    claims: list[dict[str, Any]] | None,
    left_out: int = 0,
    assets: str = "",
) -> str:
    """The whole page; `folders` are where the runs were read from, beside so many files that are none. Nothing in it
    depends on when or where it was made. assets: as for markup.document."""
    anchors = anchored(content.rows)
    sections = {
        "threats": ("Cheapest removal", _threats(content, anchors)),
        "summary": ("Summary", _summary(content, anchors)),
        "controls": ("Controls", _part(content, "controls", anchors, "No marked model was measured.")),
        "cost": ("Cost of removal", _cost(content, anchors)),
        "tradeoff": ("Damage and bit error rate", _tradeoff(content, anchors)),
        "fidelity": ("Fidelity", _fidelity(content, anchors)),
        "claims": ("Claims", _claims(claims, {run["rows"][0]["run_id"] for run in content.runs})),
        "curves": ("Attack by attack", _attacks(content, anchors)),
        "sweep": (f"By {content.x}", charts(sweeps(content), anchors, True)),
        "pictures": ("Pictures", _part(content, "pictures", anchors, "")),
        "published": ("Published beside measured", _part(content, "published", anchors, "")),
        "writing": ("What they write", _part(content, "writing", anchors, "")),
        "points": ("Every point", _points(content, anchors)),
        "provenance": ("Provenance", provenance(content, folders, anchors)),
    }
    sections = {name: (title, text) for name, (title, text) in sections.items() if text}
    links = {f"#{name}": title for name, (title, _) in sections.items()}
    body = "".join(f'<section id="{n}"><h2>{escape(t)}</h2>{text}</section>\n' for n, (t, text) in sections.items())
    return document("Watermark benchmark", facts(content, left_out), links, body, MADE, assets)


def facts(content: Content, left_out: int) -> str:
    """What a report is of, as a list."""
    df = content.rows
    judged = sorted(df[["alpha", "max_damage"]].drop_duplicates().itertuples(index=False, name=None))
    named = {
        "models, data": listed(
            [f"{model} on {data}" for model, data in sorted(places(df), key=lambda at: [*map(natural, at)])]
        ),
        "methods": ", ".join(sorted(set(df["method_label"]), key=natural)),
        "attacks": ", ".join(sorted({a for a in df["attack_label"] if a != "none"}, key=natural)) or "none",
        "runs": f"{df['run_id'].nunique():,} with {len(df):,} rows; seeds {listed(sorted(set(df['seed'])))}",
        "judged at": "; ".join(f"alpha {number(a)}, at most {limit:g} points of damage" for a, limit in judged),
        "commit": ", ".join(sorted({str(c) for c in df["commit"] if not missing(c)})) or "not recorded",
    }
    if left_out:
        named["left out"] = f"{left_out:,} files that are no run files"
    if said := threads.mixed(content.runs, df):
        named["mixed"] = said
    return f'<dl class="facts">{"".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in named.items())}</dl>'


def listed(values: Sequence[Any], most: int = 12) -> str:
    return ", ".join(map(str, values[:most])) + f" and {len(values) - most} more" * (len(values) > most)


def anchored(df: pd.DataFrame) -> dict[tuple, str]:
    """The id of each configuration's provenance, by CELL: readable, and unique by its number.

    An untouched model's is that of attack=none, or of whichever attack came first.
    """
    keys = [*df.groupby(CELL, sort=False).groups]
    anchors = {key: f"cell-{i}-{slug(f'{key[0]}-{key[1]}')}" for i, key in enumerate(keys, 1)}
    for (method, attack, label, _, *place), name in [*anchors.items()]:
        begun = (method, "none", label, "before attack", *place)
        if attack == "none" or begun not in anchors:
            anchors[begun] = name
    return anchors


def _part(content: Content, name: str, anchors: Anchors, instead: str) -> str:
    """A table of `content.parts` with its legend, or a sentence where it has no rows."""
    if name not in content.parts:
        return f"<p>{instead}</p>" if instead else ""
    (made,), legend = content.parts[name]
    return f'{grid(made, anchors)}<p class="legend">{escape(legend)}</p>'


def _summary(content: Content, anchors: Anchors) -> str:
    text = "<p>A cell leads to its runs, its configuration and the command that repeats it.</p>"
    text += _part(content, "summary", anchors, "")
    if made := shown.heat_map(content):
        text += charts([made], anchors, False)
    return text


def charts(some: Iterable[shown.Chart], anchors: Anchors, titled: bool) -> str:
    """Figures below one another; what is too many for a browser is said."""
    each = iter(some)
    text = "".join(
        f"<h3>{escape(chart.title)}</h3>" * titled + figure(interactive.chart(chart, anchors), 0.6 * chart.size[0])
        for chart in islice(each, MOST_FIGURES)
    )
    left = sum(1 for _ in each)
    return text + (f"<p>{left} more are not drawn here: see <code>figures/</code>.</p>" if left else "")


def _threats(content: Content, anchors: Anchors) -> str:
    text = _part(content, "threats", anchors, "")
    return text + charts(shown.threats(content), anchors, len(places(content.rows)) > 1) if text else ""


def _cost(content: Content, anchors: Anchors) -> str:
    text = _part(content, "cost", anchors, "No attack that could remove a mark was run.")
    return text + charts(shown.costs(content), anchors, len(places(content.rows)) > 1)


def _tradeoff(content: Content, anchors: Anchors) -> str:
    text = (
        "<p>Every point that an attack on the mark made. Lines: each method's removal frontier, the least damage at "
        "which each bit error rate was reached. Above its dotted line a mark is not detected; left of the upright "
        "one the model still works.</p>"
    )
    drawn = charts(shown.tradeoffs(content), anchors, len(places(content.rows)) > 1)
    return text + drawn if drawn else "<p>No attack that could remove a mark was run.</p>"


def _fidelity(content: Content, anchors: Anchors) -> str:
    if (chart := shown.fidelity(content)) is None:
        return "<p>No marked model was measured beside its host.</p>"
    said = "host − victim, before any attack: what embedding cost. Bars are 95% t intervals over seeds."
    return f"<p>{said}</p>" + charts([chart], anchors, False)


def _claims(claims: list[dict[str, Any]] | None, known: set[str]) -> str:
    if claims is None:
        return "<p>No claims were tried. <code>python -m bench.claims</code> runs and judges them.</p>"
    rows = []
    for item in claims:
        ids = [item["run_ids"]] if isinstance(item["run_ids"], str) else [*(item["run_ids"] or [])]
        runs = ", ".join(f'<a href="#run-{escape(i)}">{escape(i)}</a>' if i in known else escape(str(i)) for i in ids)
        seeds = listed(item["seeds"]) if isinstance(item["seeds"], list) else str(item["seeds"])
        words = [td(str(item["name"])), td(str(item["paper"]))]
        words += [td(str(item[key]), kind="text") for key in ("claim", "criterion")]
        words += [td(str(item["verdict"]), kind=f"cell {JUDGED.get(item['verdict'], 'na')}")]
        words += [td(str(item[key]), kind="text") for key in ("text", "published")]
        words += [td(str(item[key])) for key in ("data", "model")]
        words += [td(seeds), f'<td class="run">{runs}</td>', f"<td><code>{escape(str(item['command']))}</code></td>"]
        rows.append(words)
    count = Counter(str(item["verdict"]) for item in claims)
    caption = ", ".join(f"{verdict} {n}" for verdict, n in sorted(count.items()))
    return table([*CLAIMS, "runs", "command"], rows, ("paper", "verdict", "data", "model"), caption)


def _attacks(content: Content, anchors: Anchors) -> str:
    text = (
        "<p>Bit error rate and utility against the attack's strength: a line is the mean over seeds, its band the 95% "
        "interval (Wilson over pooled bits; t for utility), small dots are the seeds. A click on a point leads to its "
        "runs.</p>"
    )
    drawn = charts(shown.attacks(content), anchors, True)
    return text + drawn if drawn else "<p>No attack was run.</p>"


def _points(content: Content, anchors: Anchors) -> str:
    points, several, rows = content.points[:MOST_POINTS], len(places(content.rows)) > 1, []
    for p in points.itertuples():
        digits, name, at = unit(p.utility_name)[1], p.utility_name, anchors.get(configuration(p), "")
        damage = interval(p.damage, p.damage_half, name)
        row = [td(p.attack_label), td(p.method_label), *([td(p.model), td(p.data)] * several)]
        row += [td({"none": "victim"}.get(p.knob, p.knob)), num(number(p.strength), p.strength), num(str(p.n), p.n)]
        row += [num(ber(p), p.ber), num("–" if missing(p.log10_p) else f"{p.log10_p:.1f}", p.log10_p)]
        row += [num(claim(p), p.claim_ber), num(interval(p.utility, p.utility_half, name), p.utility)]
        row += [num(damage, None if missing(p.damage) else round(p.damage, digits + 3))]
        judged = p.attack != "none" and p.status == "ok"
        word = content.unsound.get((p.method_label, p.model, p.data)) if judged else None
        row += [
            td(f"{p.verdict} ({word})" if word and word not in p.verdict else p.verdict),
            td(p.reason, kind="text") if p.reason else td(""),
        ]
        rows.append([*row, td("runs", kind="link", href=at) if at else td("")])
    head = ["attack", "method", *(["model", "data"] * several), "knob", "strength", "seeds", "BER", "log10 p"]
    head += ["claim BER", "utility", "damage", "verdict", "reason", "provenance"]
    cut = f"The first {len(points):,} of {len(content.points):,} points; all are in tables/strengths.csv. "
    note = (cut if len(points) < len(content.points) else "") + (
        "Means over seeds with their 95% intervals; skipped and failed ones have lines of their own. "
        "* owner's mark not detected, ! attacker's claim passes, in ( ) for some seeds only."
    )
    return table(head, rows, ("attack", "method", "model", "data", "knob", "verdict"), note)


def provenance(content: Content, folders: Sequence[Path], anchors: Anchors, back: str = "summary") -> str:
    """The runs, configuration and command of every cell, by its anchor; `back`: where one comes from."""
    said = {configuration(c): c for c in content.cells.itertuples()}
    made = {(run["rows"][0]["run_id"], run["rows"][0]["created_at"]): run for run in content.runs}
    compacted = any((folder / GATHERED).is_file() for folder in folders)
    text = ['<p class="hint">Follow a cell of the summary, a point of a figure or a line of the table above.</p>\n']
    names = "".join(f"<th>{name}</th>" for name in ("run", "seed", "file", "commit", "device", "made", "rows"))
    for i, (key, g) in enumerate(content.rows.groupby(CELL, sort=False)):
        cell, first = dict(zip(CELL, key, strict=True)), g.iloc[0]
        rows = []
        for (run_id, seed), r in g.groupby(["run_id", "seed"], sort=True):
            file = f"{cell['method']}/{cell['attack']}/{run_id}.json"
            if not any((folder / file).is_file() for folder in folders):
                file = f"in {GATHERED}" if compacted else "–"
            row = r.iloc[0]
            states = ", ".join(f"{n} {s}" for s, n in sorted(Counter(r["status"]).items()))
            words = [run_id, seed, file, row["commit"], row["device"], row["created_at"], states]
            plain = ["–" if missing(word) else escape(str(word)) for word in words]
            rows.append(f'<tr id="run-{plain[0]}">{"".join(f"<td>{word}</td>" for word in plain)}</tr>')
        title = f"{cell['method_label']} × {cell['attack_label']}, {cell['model']}, {cell['data']}"
        outcome = said.get(key)
        told = f": {outcome.text}" + f" ({outcome.reason})" * bool(outcome.reason) if outcome else ""
        run = made[first["run_id"], first["created_at"]]
        line = command(run.get("command"), (int(seed) for seed in g["seed"]))
        whole = "(too many cells: see the run file)"
        whole = json.dumps(run["config"], indent=1, ensure_ascii=False) if i < MOST_CELLS else whole
        text.append(
            f'<section class="provenance" id="{anchors[key]}"><h3>{escape(title)}</h3><p>Outcome{escape(told)}. '
            f'<a href="#{back}">Back</a></p>'
            f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            f'<p>To repeat it:</p><pre class="command">{escape(line)}</pre><details><summary>Configuration of seed '
            f"{escape(str(first['seed']))}, resolved</summary><pre>{escape(whole)}</pre></details></section>\n"
        )
    return "".join(text)
