"""What it costs to remove a mark: the protocol's cost of removal, its table, and the removal frontier.

Damage is victim - suspect in points of utility, signed; BER in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.metrics import t_interval
from bench.report.tables import Cell, Table
from bench.report.words import BEFORE, CELL, configuration, interval, natural, places, seeds, unit

COLUMNS = [*CELL, "needs", "cost", "half", "k", "n", "weighed", "seconds", "limit", "utility_name", "text", "kind"]


def _cell(g: pd.DataFrame, outcome: Any) -> dict[str, Any]:
    """Cost of one method under one attack; `text` is a number only where there is one."""
    ok = g[(g["status"] == "ok") & ~g["knob"].isin(BEFORE)]
    name, limit = next(iter(ok["utility_name"].dropna()), None), g["max_damage"].iloc[0]
    marked = ok[ok["detected"].notna()]
    gone = marked[~marked["detected"].astype(bool)]
    # As the attacker would choose: the images that the damage is told on are not its to see.
    gone = gone.assign(weighed=gone["weighed"].fillna(gone["damage"]))
    least = gone.loc[gone.dropna(subset=["damage", "weighed"]).groupby("seed")["weighed"].idxmin()]
    cost, half = t_interval(least["damage"])
    if cost < 0 and (half is None or cost + half >= 0):
        cost = 0.0  # what lies within noise of nothing is not told as a gain
    n = marked["seed"].nunique()
    cell = {"cost": cost, "half": half, "k": len(least), "n": n, "limit": limit, "utility_name": name}
    cell |= {"needs": g["needs"].iloc[0], **{name: least[name].mean() for name in ("weighed", "seconds")}}
    if outcome.kind in ("na", "invalid"):
        return cell | {"cost": float("nan"), "half": None, "text": outcome.text, "kind": outcome.kind}
    if len(least):
        part = f" ({len(least)}/{n} seeds)" if len(least) < n else ""
        text = f"{interval(cost, half, name)} {unit(name)[0]}{part}"
        return cell | {"text": text, "kind": "bad" if cost <= limit else "warn"}
    if len(gone):
        return cell | {"text": "lost (new task)", "kind": "warn"}
    if "failed" in set(g["status"]) or not n:  # what was not tried cannot have cost too much
        return cell | {"text": "failed" if "failed" in set(g["status"]) else "n/a", "kind": "failed"}
    return cell | {"text": "never", "kind": "good"}


def costs(df: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """One line per method and attack on its mark: the least damage at which the owner's mark was not detected.

    Over all strengths of a seed, of which the attacker chooses by the damage on validation data (`weighed`), whatever
    is left of the model (max_damage counts for `kind` only); `cost` and `half` are mean, not below 0 unless the
    interval is, and half-width of the 95% t interval over the `k` of `n` seeds at which it ever went, nan where it
    never did. `needs`: what the attacker has to have, in words. Forgery and detection leave the mark in place: those
    attacks have no cost and no line. `cells`: outcomes.outcomes.
    """
    tried = df[(df["attack"] != "none") & df["goal"].isin(["removal", "overwrite"])]
    groups = dict(iter(tried.groupby(CELL, sort=False)))
    out = []
    for cell in cells.itertuples():
        key = tuple(getattr(cell, name) for name in CELL)
        if key in groups and cell.method != "none":
            out.append(dict(zip(CELL, key, strict=True)) | _cell(groups[key], cell))
    return pd.DataFrame(out, columns=COLUMNS)


def table(cost: pd.DataFrame, attacks: Sequence[str]) -> Table:
    """Methods in rows, attacks in columns (those of `attacks` that have a cost)."""
    attacks = [attack for attack in attacks if attack in set(cost["attack_label"])]
    keys = ["method", "model", "data"] if len(places(cost)) > 1 else ["method"]
    head = [("", name) for name in [*keys, *attacks]]
    made = Table("Cost of removal", seeds(cost.loc[cost["n"] > 0, "n"]), head, len(keys), turns=True)
    cells = {(c.model, c.data, c.method_label, c.attack_label): c for c in cost.itertuples()}
    for model, data, label in sorted({key[:3] for key in cells}, key=lambda at: [*map(natural, at)]):
        found = [cells.get((model, data, label, attack)) for attack in attacks]
        costs = [Cell("–") if c is None else Cell(c.text, c.kind, configuration(c)) for c in found]
        made.add(*[label, model, data][: len(keys)], *costs)
    return made


def legend(cost: pd.DataFrame) -> str:
    """What the table's cells mean."""
    limits = " or ".join(f"{x:g}" for x in sorted(cost["limit"].dropna().unique()))
    return (
        "Cost of removal: the least damage (victim - suspect) at which the mark was not detected, over all strengths "
        f"of a seed and whatever it did to the model (as an attack's success only up to {limits} counts). The strength "
        "is chosen on validation data, the damage told on test data, and not below 0 unless its interval is. "
        "± is a 95% t interval over the seeds at which the mark went; never: at no strength of any seed."
    )


def frontier(p: pd.DataFrame) -> list[tuple[float, float]]:
    """Corners (damage, BER) of one method's removal frontier: the least damage at which each BER was reached.

    `p` holds its aggregated points (aggregate.points), of which the untouched victim is where the frontier begins;
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
    block = block[(block["status"] == "ok") & ~block["goal"].isin(["forge", "secrecy"]) & (block["method"] != "none")]
    return block[block["knob"] != "host"].dropna(subset=["ber", "damage"])
