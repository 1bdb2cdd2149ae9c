"""What it costs to remove a mark: the protocol's cost of removal, its table and figures, and the removal frontier.

Damage is victim - suspect in points of utility, signed; BER in [0, 1].
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.metrics import missing, t_interval
from bench.plots import BEFORE, CELL, GREY, NAMED, STYLE, finish, levels, outcomes, places, save, seeds, styles, unit
from bench.tables import STYLES, Table

COLUMNS = [*CELL, "cost", "half", "k", "n", "limit", "utility_name", "text", "kind"]
HATCHES = ("", "//", "xx", "..", "\\\\", "--", "||", "++")
TICKS = (0, 1, 2, 5, 10, 20, 50, 100)


def _cell(g: pd.DataFrame, outcome: Any) -> dict[str, Any]:
    """Cost of one method under one attack; `text` is a number only where there is one."""
    ok = g[(g["status"] == "ok") & ~g["knob"].isin(BEFORE)]
    name, limit = next(iter(ok["utility_name"].dropna()), None), g["max_damage"].iloc[0]
    marked = ok[ok["detected"].notna()]
    gone = marked[~marked["detected"].astype(bool)]
    least = gone.dropna(subset=["damage"]).groupby("seed")["damage"].min()
    cost, half = t_interval(least)
    n = marked["seed"].nunique()
    cell = {"cost": cost, "half": half, "k": len(least), "n": n, "limit": limit, "utility_name": name}
    word, digits = unit(name)
    if outcome.kind in ("na", "invalid"):
        return cell | {"cost": float("nan"), "half": None, "text": outcome.text, "kind": outcome.kind}
    if len(least):
        about = "" if half is None else f" ± {half:.{digits}f}"
        part = f" ({len(least)}/{n} seeds)" if len(least) < n else ""
        return cell | {"text": f"{cost:.{digits}f}{about} {word}{part}", "kind": "bad" if cost <= limit else "warn"}
    if len(gone):
        return cell | {"text": "lost (new task)", "kind": "warn"}
    if "failed" in set(g["status"]) or not n:  # what was not tried cannot have cost too much
        return cell | {"text": "failed" if "failed" in set(g["status"]) else "n/a", "kind": "failed"}
    return cell | {"text": "never", "kind": "good"}


def costs(df: pd.DataFrame) -> pd.DataFrame:
    """One line per method and attack on its mark: the least damage at which the owner's mark was not detected.

    Over all strengths of a seed, whatever is left of the model (max_damage counts for `kind` only); `cost` and `half`
    are mean and half-width of the 95% t interval over the `k` of `n` seeds at which it ever went, nan where it never
    did. A forged claim leaves the mark in place: those attacks have no cost and no line.
    """
    tried = df[(df["attack"] != "none") & (df["goal"] != "forge")]
    groups = dict(iter(tried.groupby(CELL, sort=False)))
    out = []
    for cell in outcomes(tried if tried.empty else df).itertuples():
        key = tuple(getattr(cell, name) for name in CELL)
        if key in groups and cell.method != "none":
            out.append(dict(zip(CELL, key, strict=True)) | _cell(groups[key], cell))
    return pd.DataFrame(out, columns=COLUMNS)


def table(cost: pd.DataFrame, attacks: Sequence[str]) -> Table:
    """Methods in rows, attacks in columns (those of `attacks` that have a cost)."""
    attacks = [attack for attack in attacks if attack in set(cost["attack_label"])]
    keys = ["method", "model", "data"] if len(places(cost)) > 1 else ["method"]
    head = [("", name) for name in [*keys, *attacks]]
    made = Table("Cost of removal", seeds(cost.loc[cost["n"] > 0, "n"]), head, len(keys))
    cells = {(c.model, c.data, c.method_label, c.attack_label): c for c in cost.itertuples()}
    for i, (model, data, label) in enumerate(sorted({key[:3] for key in cells})):
        row = [label, model, data][: len(keys)]
        for attack in attacks:
            cell = cells.get((model, data, label, attack))
            if cell is not None and cell.kind == "invalid":
                made.style[i, len(row)] = STYLES["invalid"]
            row.append("–" if cell is None else cell.text)
        made.rows.append(row)
    return made


def legend(cost: pd.DataFrame) -> str:
    """What the table's cells mean."""
    limits = " or ".join(f"{x:g}" for x in sorted(cost["limit"].dropna().unique()))
    return (
        "Cost of removal: the least damage (victim - suspect) at which the mark was not detected, over all strengths "
        f"of a seed and whatever it did to the model (as an attack's success only up to {limits} counts). "
        "± is a 95% t interval over the seeds at which the mark went; never: at no strength of any seed."
    )


def frontier(p: pd.DataFrame) -> list[tuple[float, float]]:
    """Corners (damage, BER) of one method's removal frontier: the least damage at which each BER was reached.

    `p` holds its aggregated points (bench.report.points), of which the untouched victim is where the frontier begins;
    from corner to corner it runs level and then up. Later corners are higher and further right.
    """
    reached = p[(p["status"] == "ok") & (p["knob"] != "host")].dropna(subset=["ber", "damage"])
    corners: list[tuple[float, float]] = []
    for at in reached.sort_values(["damage", "ber"], ascending=[True, False]).itertuples():
        if not corners or at.ber > corners[-1][1]:
            corners.append((float(at.damage), float(at.ber)))
    return corners


def tradeoff(block: pd.DataFrame) -> pd.DataFrame:
    """Points of one model and data that have a place in damage and BER: what attacks on the mark made, and victims."""
    block = block[(block["status"] == "ok") & ~block["goal"].eq("forge") & (block["method"] != "none")]
    return block[block["knob"] != "host"].dropna(subset=["ber", "damage"])


def hatch(method: str) -> str:
    """Hatching of a method's bars: a function of its name, as its marker is (bench.plots.style)."""
    return HATCHES[NAMED.get(method, zlib.crc32(method.encode())) % len(HATCHES)]


def flagged(cells: pd.DataFrame) -> set[str]:
    """Labels of methods of which nothing can be said: a control failed."""
    return set(cells.loc[cells["kind"] == "invalid", "method_label"])


def ticks(limit: float, low: float, high: float) -> list[float]:
    """Round damages between `low` and `high`, and the limit."""
    return sorted({limit, *(t for t in (*(-t for t in TICKS), *TICKS) if low <= t <= high)})


def bars(block: pd.DataFrame, title: str, attacks: Sequence[str]) -> Figure:
    """Cost of removal of one model and data: a bar per method, attacks below one another; open-ended above 0: never."""
    looks, limit = styles(block), float(block["limit"].max())
    attacks = [attack for attack in attacks if attack in set(block["attack_label"])]
    room = 0.8 / len(looks)
    fig = Figure(figsize=(6.4, 1.4 + len(attacks) * (0.15 + 0.16 * len(looks))), layout="constrained")
    ax = fig.subplots()
    for p in block.itertuples():
        look, nth = looks[p.method_label], [*looks].index(p.method_label)
        y = attacks.index(p.attack_label) + room * (nth + 0.5) - 0.4
        if not missing(p.cost):
            face = {"color": look["color"], "hatch": hatch(p.method), "edgecolor": "white", "linewidth": 0}
            error = {} if missing(p.half) else {"xerr": p.half, "error_kw": {"elinewidth": 0.8, "capsize": 1.5}}
            ax.barh(y, p.cost, room * 0.9, **face, **error)
        end = 0.0 if missing(p.cost) else max(0.0, p.cost + (0 if missing(p.half) else p.half))
        ax.annotate(p.text, (end, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5, color=GREY)
    ax.axvline(limit, color=GREY, linestyle=":", linewidth=1.2)
    ax.axvline(0, color=GREY, linewidth=0.8)
    _damage(ax, block["cost"], limit, block["utility_name"], room=12)
    ax.set_yticks(range(len(attacks)), attacks)
    ax.set(ylim=(len(attacks) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    bad, methods = flagged(block), dict(zip(block["method_label"], block["method"], strict=True))
    face = {label: {"facecolor": look["color"], "hatch": hatch(methods[label])} for label, look in looks.items()}
    handles = [Patch(label=k + " (INVALID)" * (k in bad), edgecolor="white", linewidth=0, **face[k]) for k in looks]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    fig.suptitle(title, fontsize=10, fontweight="bold")
    return fig


def _damage(ax: Any, values: pd.Series, limit: float, names: pd.Series, room: float) -> None:
    """The axis of damage: linear up to the limit, logarithmic beyond, with room on the right for labels."""
    low, high = min(-1.0, values.min()) * 1.1, max(2 * limit, values.max() * 1.3 if values.notna().any() else 0)
    low, scale = (-1.0 if missing(low) else low), max(limit, 1.0)
    ax.set_xscale("symlog", linthresh=scale, linscale=1.5)
    ax.set_xlim(low, high * (1 + room / 10))
    at = ticks(limit, low, high)
    ax.set_xticks(at, [f"{x:g}" for x in at])
    ax.set_xticks([], minor=True)
    words = dict.fromkeys(unit(name)[0] for name in names.dropna())
    ax.set_xlabel(f"damage, {' or '.join(words)} (dotted: the most a success may cost)")


def scatter(block: pd.DataFrame, start: pd.DataFrame, title: str, bad: set[str]) -> Figure:
    """BER against damage of every point of one model and data, a dot each; lines: the removal frontier of each method.

    Above a method's dotted line its mark is not detected; left of the limit the model still works.
    """
    looks, limit = styles(block), float(block["max_damage"].max())
    fig = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = fig.subplots()
    for label, look in looks.items():
        p = block[block["method_label"] == label]
        corners = [*zip(*frontier(p), strict=True)]
        dots = look | {"linestyle": "", "markersize": 4, "alpha": 0.75, "markeredgewidth": 0.3}
        ax.plot(p["damage"], p["ber"], **dots)
        line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.4}
        ax.step([*corners[0], max(block["damage"].max(), limit)], [*corners[1], corners[1][-1]], where="post", **line)
    for y, text, colour, dash in dict.fromkeys(levels(start, looks, set())[0]):
        ax.axhline(y, color=colour, linestyle=dash, linewidth=1.0, zorder=1)
        ax.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), color=GREY, fontsize=7, va="center")
    ax.axvline(limit, color=GREY, linestyle=":", linewidth=1.2)
    _damage(ax, block["damage"], limit, block["utility_name"], room=0)
    ax.set(ylabel="bit error rate", ylim=(-0.02, max(0.54, block["ber"].max() + 0.02)))
    finish(fig, title, looks, bad)
    return fig


def draw(points: pd.DataFrame, cost: pd.DataFrame, out: str | Path, formats: Iterable[str]) -> list[Path]:
    """`cost` and `tradeoff`, one of each per model and data; nothing where one method met one attack only."""
    written: list[Path] = []
    if cost["attack_label"].nunique() < 2 and cost["method_label"].nunique() < 2:
        return written
    several, attacks, formats = len(places(cost)) > 1, [*dict.fromkeys(points["attack_label"])], [*formats]
    with matplotlib.rc_context(STYLE):
        for (model, data), block in cost.groupby(["model", "data"], sort=False):
            here = points[(points["model"] == model) & (points["data"] == data)]
            tail, title = (f"-{model}-{data}", f", {model}, {data}") if several else ("", "")
            tail = re.sub(r"[^a-z0-9.]+", "-", tail.lower()).rstrip("-")
            written += save(bars(block, f"cost of removal{title}", attacks), Path(out) / f"cost{tail}", formats)
            spots = tradeoff(here)
            if len(spots):
                start = here[(here["knob"] == "none") & (here["method"] != "none")]
                fig = scatter(spots, start, f"damage and bit error rate{title}", flagged(block))
                written += save(fig, Path(out) / f"tradeoff{tail}", formats)
    return written
