"""What papers report beside what was measured here: the values that run files hold of their runs."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pandas as pd

from bench import metrics
from bench.metrics import missing
from bench.report.tables import Cell, Table
from bench.report.words import natural, number, places, rounded, seeds, unit
from bench.store.expected import BEFORE, LAST, chosen

WHAT = {"detection": "owner's bits", "claim": "claim's bits", "accuracy": "accuracy"}
FIELDS = {"detection": "ber", "claim": "claim_ber", "accuracy": "utility"}  # of a row, that a quantity is taken from
PLACE = ["model", "data", "method", "method_label", "attack", "attack_label"]
VALUE = ["quantity", "knob", "strength", "published", "source", "table", "note"]
KEYS = [*PLACE, *VALUE, "setting"]
COLUMNS = [*KEYS, "measured", "low", "high", "difference", "n"]
LEGEND = (
    "In percent: the owner's bits found, read by position as in the papers, those of an attacker's claim, accuracy. "
    "Difference: ours - published, of accuracies on the paper's data alone. [ ] is a 95% Wilson interval over pooled "
    "bits, ± a 95% t interval over seeds. Setting: ours is not the paper's, whatever the difference; the note has ours "
    "and, in brackets, the paper's, of the options that are known. –: no such point was measured."
)


def frame(runs: list[dict[str, Any]], df: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS of every published value of these runs, seeds pooled. `df`: their rows (labels.variants)."""
    found: dict[tuple, dict[int, dict[str, Any] | None]] = defaultdict(dict)
    elsewhere = set()  # on other data than the paper's
    rows = dict([*df.groupby("run_id", sort=False)])
    for run in (run for run in runs if run.get("expected") and run["rows"][0]["run_id"] in rows):
        block = rows[run["rows"][0]["run_id"]]
        at = block.iloc[0]
        for entry, apart in nearest(run):
            about = {name: at[name] for name in PLACE} | {name: entry[name] for name in VALUE}
            about["setting"] = ", ".join(f"{key} {ours} ({theirs})" for key, (ours, theirs) in apart.items())
            if entry["knob"] in BEFORE:  # which every attack's run has
                about |= {"attack": "none", "attack_label": "before attack"}
            key, point = tuple(about[name] for name in KEYS), _point(block, entry)
            elsewhere |= {key} if "data" in apart else set()
            if point is not None or at["seed"] not in found[key]:
                found[key][at["seed"]] = point
    lines = []
    for key, points in found.items():
        line = dict(zip(KEYS, key, strict=True))
        lines.append(line | _pooled(line, [p for p in points.values() if p is not None], key in elsewhere))
    tables, order = ([*dict.fromkeys(map(by, lines))] for by in (lambda line: line["table"], _line))
    lines.sort(key=lambda line: (tables.index(line["table"]), order.index(_line(line)), natural(line["method_label"])))
    lines.sort(key=lambda line: (natural(line["model"]), natural(line["data"])))
    return pd.DataFrame(lines, columns=COLUMNS)


def _line(values: dict[str, Any]) -> tuple:
    """What a line of a paper's table is of: its methods stand below one another."""
    return tuple(values[name] for name in ("attack_label", "table", "quantity", "knob", "strength"))


def nearest(run: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, tuple[str, str]]]]:
    """Each published value of a run, and the options whose value differs: (ours, the paper's). Of several of one point
    those whose setting differs least: a paper's table has a line for each of its data sets."""
    found = defaultdict(list)
    for entry in run["expected"]:
        ours, theirs = chosen(entry["setting"], run), entry["setting"]
        apart = {key: (_said(ours[key]), _said(value)) for key, value in theirs.items() if ours[key] != value}
        found[entry["quantity"], entry["knob"], entry["strength"]].append((entry, apart))
    least = {point: min(len(apart) for _, apart in entries) for point, entries in found.items()}
    return [item for point, entries in found.items() for item in entries if len(item[1]) == least[point]]


def _said(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return "none" if value is None else str(value)


def _point(block: pd.DataFrame, entry: dict[str, Any]) -> dict[str, Any] | None:
    """The row of a run that a published value is of, or None."""
    rows = block[(block["knob"] == entry["knob"]) & (block["status"] == "ok")]
    if entry["strength"] == LAST:
        rows = rows[rows["strength"] == rows["strength"].max()]
    else:
        rows = rows[rows["strength"].isna() if entry["strength"] is None else rows["strength"] == entry["strength"]]
    rows = rows[rows[FIELDS[entry["quantity"]]].notna()]
    if rows.empty or (entry["quantity"] == "accuracy" and unit(rows["utility_name"].iloc[0])[0] != "pts"):
        return None
    return rows.iloc[0].to_dict()


def _pooled(about: dict[str, Any], points: list[dict[str, Any]], elsewhere: bool) -> dict[str, Any]:
    """What was measured in the rows of some seeds, with its interval. `elsewhere`: on other data than the paper's."""
    if not points:
        return dict.fromkeys(("measured", "low", "high", "difference"), math.nan) | {"n": 0}
    values = [p[FIELDS[about["quantity"]]] for p in points]
    if about["quantity"] == "accuracy":
        mean, half = metrics.t_interval(values)
        low, high = (math.nan, math.nan) if half is None else (mean - half, mean + half)
    else:
        bits = [p["n_bits"] for p in points]
        wrong = [value * n for value, n in zip(values, bits, strict=True)]
        mean = 100 * (1 - sum(wrong) / sum(bits))
        high, low = (100 * (1 - end) for end in metrics.pooled(wrong, bits))
    difference = math.nan if elsewhere and about["quantity"] == "accuracy" else mean - about["published"]
    last = {"strength": max(p["strength"] for p in points)} if about["strength"] == LAST else {}
    return last | {"measured": mean, "low": low, "high": high, "difference": difference, "n": len(points)}


def table(found: pd.DataFrame, bad: dict[tuple, str]) -> Table:
    """`frame`, a line per value; of a method of which nothing can be said (`bad`: outcomes.unsound) it says so."""
    place = ["model", "data"] if len(places(found)) > 1 else []
    head = [*place, "method", "what", "published", "ours", "difference", "setting"]
    caption = seeds(found.loc[found["n"] > 0, "n"])
    made = Table("Published beside measured", caption, [("", name) for name in head], len(place) + 2, room=20)
    for p in found.itertuples():
        word = bad.get((p.method_label, p.model, p.data))
        method = f"{p.method_label} ({word})" if word else p.method_label
        method = "–" if p.knob == "host" else method  # of one host, however many marks were made of it
        setting = made.note("; ".join(filter(None, [_about(p), p.note])))
        cells = [*(getattr(p, name) for name in place), method, _what(p), f"{p.published:g}"]
        cells += [_ours(p), "–" if missing(p.difference) else f"{p.difference:+.1f}"]
        cells.append(("ours" if p.setting else "same") + setting)
        if cells not in made.texts:
            at = (p.method, p.attack, p.method_label, p.attack_label, p.model, p.data)
            made.add(*(Cell(text, "", at) if name == "ours" else text for name, text in zip(head, cells, strict=True)))
    return made


def _what(p: Any) -> str:
    """Which number of the paper's: its table, what of which point, and of which variant of the attack."""
    variant = f" ({p.attack_label})" if p.attack_label not in (p.attack, "before attack") else ""
    return f"{p.table or p.attack}{variant}: {what(p.quantity, p.knob, p.strength)}"


def what(quantity: str, knob: str, strength: Any) -> str:
    """A quantity, and of which row: "owner's bits, last epoch", "accuracy, victim"."""
    point = f"{LAST} {knob}" if strength == LAST else metrics.suspect(knob, strength)
    return f"{WHAT[quantity]}, {({'host': 'no mark', 'none': 'victim'}).get(knob, point)}"


def _about(p: Any) -> str:
    return f"{p.source}{', ' if p.table else ''}{p.table}{f': ours {p.setting}' if p.setting else ''}"


def _ours(p: Any) -> str:
    if missing(p.measured):
        return "–"
    if p.quantity == "accuracy":
        return rounded(p.measured, None if missing(p.high) else p.high - p.measured, 2)
    return f"{p.measured:.1f}" + (f" [{p.low:.1f}, {p.high:.1f}]" if p.n > 1 else "")
