"""An attack in a figure: bit error rate and utility against its strengths. BER in [0, 1], utility in its unit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench import metrics
from bench.metrics import Knob, missing
from bench.report import style
from bench.report.figures.charts import Axis, Chart, Level, Panel, Series, points
from bench.report.style import Look
from bench.report.words import called, lines, number, span, tests, unit


def levels(start: pd.DataFrame, looks: dict[str, Look], task: set[str]) -> tuple[list[Level], list[Level]]:
    """Lines across the panels of BER and of utility (in `task`), from untouched models."""
    marked, utility = start.dropna(subset=["n_bits"]), []
    error = [Level(1 - chance, "chance", dash="--", brief="chance") for chance in sorted({*marked["chance"]} or {0.5})]
    for p in marked.itertuples():
        if (need := metrics.matches_needed(int(p.n_bits), p.alpha, tests(p.tests), p.chance)) is not None:
            text = f"detected below\n(α = {number(p.alpha)}, n = {p.n_bits:.0f})"
            brief, means = f"n={p.n_bits:.0f}", f"detected below (α = {number(p.alpha)})"
            error.append(Level(1 - need / p.n_bits, text, brief=brief, means=means))
    for p in start[start["utility_name"].isin(task)].dropna(subset=["utility", "utility_host"]).itertuples():
        utility.append(Level(p.utility_host, "host", dash="-", brief="host"))
        if p.method != "none":
            sign, worse = ("+", p.max_damage) if metrics.falls(p.utility_name) else ("-", -p.max_damage)
            text = f"victim {sign} {p.max_damage:g} {unit(p.utility_name)[0]}"
            said = {"brief": f"{worse:+g}".replace("-", "−"), "means": text.replace("-", "−")}
            utility.append(Level(p.utility + worse, text, looks[p.method_label].colour, **said))
    return [*dict.fromkeys(error)], [*dict.fromkeys(utility)]


def _placed(knob: Knob, strengths: Iterable[float]) -> tuple[dict[float, float], float, list[tuple[float, str]] | None]:
    """Where strengths stand on a panel's axis, where the untouched victim does, and the ticks; None: as they come.

    The victim is the origin of every panel: at the value that leaves it as it is, or before the weakest strength."""
    at = sorted(set(strengths))
    if not at:
        return {}, 0.0, [(0.0, "victim"), (1.0, "after")]
    log = knob.log and at[0] > 0
    place = {s: math.log10(s) if log else s for s in at}
    if knob.untouched is not None and not log and knob.untouched not in at:
        victim, named = knob.untouched, len(at) <= 6
    else:
        ends, named = (place[at[0]], place[at[-1]]), True
        step = max((ends[1] - ends[0]) / max(len(at) - 1, 1), 0.3 * (ends[1] - ends[0])) or 1.0
        victim = ends[0] - step if knob.rises else ends[1] + step
    kept = at[:: math.ceil(len(at) / 6)]
    spots = [(place[s], number(s)) for s in kept]
    name = "victim" if knob.untouched is None or knob.untouched in at else number(knob.untouched)
    return place, victim, sorted([*spots, (victim, name)]) if named else None


def curves(
    start: pd.DataFrame,
    made: pd.DataFrame,
    seeds: pd.DataFrame,
    title: str,
    bad: dict[str, str],
    knobs: dict[str, Knob],
) -> Chart:
    """BER above, utility below, against strength; a column per knob. `start`: untouched victims, `seeds`: rows."""
    block = pd.concat([start, made], ignore_index=True)
    looks, task = style.looks(block), set(made["utility_name"])  # the attacker may have moved to another task
    error, utility = levels(start, looks, task)
    top = max(0.54, *made[["ber", "ber_high", "claim_ber"]].max().fillna(0)) + 0.02
    above, below = Axis("Bits wrong (BER)", (-0.02, top)), Axis("\n".join(map(called, sorted(task))))
    columns, widths = [], []
    for knob in dict.fromkeys(made["knob"]):
        p, s = (t[t["knob"].isin([knob, "none"])] for t in (block, seeds))
        place, victim, ticks = _placed(knobs[knob], made.loc[made["knob"] == knob, "strength"].dropna())
        p, s = (t.assign(x=t["strength"].map(place).fillna(1.0).where(t["knob"] != "none", victim)) for t in (p, s))
        x, room = Axis(lines(knobs[knob].title, 24), None, ticks), 0.04 * (p["x"].max() - p["x"].min())
        x.ends = p["x"].min() - room, p["x"].max() + room
        x.ends = x.ends if knobs[knob].rises else x.ends[::-1]
        column = Panel(x, above, levels=error), Panel(x, below, levels=utility)
        for i, label in enumerate(looks):
            mine, dots = (t[t["method_label"] == label] for t in (p, s))
            if (mine["knob"] == knob).any():
                mine, size = mine.sort_values("x"), max(0.5, 1 - 0.17 * i)  # markers that coincide stay visible
                column[0].series.append(curve(label, mine.dropna(subset=["ber"]), dots, "ber", size))
                mine_, dots = (t[t["utility_name"].isin(task)] for t in (mine, dots))
                column[1].series.append(curve(label, mine_, dots, "utility", size))
                if len(q := mine.dropna(subset=["claim_ber"])):
                    look = {"joined": "straight", "open": [True] * len(q), "size": size}
                    column[0].series.append(points(label, q, q["x"], q["claim_ber"], **look))
        columns.append(column)
        widths.append(1.0 if len(place) > 1 else 0.45)
    below.ends = ends([panel for _, panel in columns], utility, task)
    note = "open: attacker's own mark" if made["claim_ber"].notna().any() else ""
    size = 600 if len(widths) == 1 else 200 + 250 * sum(widths), 520
    return Chart(title, title, looks, bad, [*map(list, zip(*columns, strict=True))], size, widths, note)


def ends(panels: Iterable[Panel], lines: Iterable[Level], task: Iterable[str]) -> tuple[float, float]:
    """One axis of utility for all panels: all that is drawn, and no more than there can be."""
    every = [s for panel in panels for s in panel.series]
    found = [v for s in every for some in (s.y, *(s.band or ()), *(s.seeds or ())[1:]) for v in some]
    found = [v for v in [*found, *(line.at for line in lines)] if not missing(v)]
    room = 0.06 * (max(found) - min(found) or 1)
    low, high = (end(each) for end, each in zip((min, max), zip(*map(span, task), strict=True), strict=True))
    return max(min(found) - room, low - room / 2), min(max(found) + room, high + room / 2)


def curve(label: str, p: pd.DataFrame, seeds: pd.DataFrame, name: str, size: float) -> Series:
    """Means of one method in one panel, joined; with intervals and single seeds where there are several."""
    more: dict[str, Any] = {}
    if (p["n"] > 1).any():
        least, most = zip(*map(span, p["utility_name"]), strict=True)  # no band goes beyond what there can be
        low = p["ber_low"] if name == "ber" else (p[name] - p[f"{name}_half"]).clip([*least])
        high = p["ber_high"] if name == "ber" else (p[name] + p[f"{name}_half"]).clip(None, [*most])
        more = {"band": ([*low], [*high]), "seeds": ([*seeds["x"]], [*seeds["reading" if name == "ber" else name]])}
    return points(label, p, p["x"], p[name], joined="straight", size=size, **more)
