"""The least that it costs to remove a mark, by what the attacker has: over all attacks, the report's first table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.metrics import missing
from bench.report.tables import Cell, Table
from bench.report.words import CELL, configuration, interval, natural, places, seeds, unit

# Who has the weights can ask them, and who sees outputs knows the labels.
OUTPUTS = {"outputs", "labels", "data"}
WEIGHTS = {"weights", "outputs", "labels"}
HOLDS = {
    "weights": WEIGHTS,
    "+ data": WEIGHTS | {"data"},
    "+ method": WEIGHTS | {"data", "method"},
    "+ layer": WEIGHTS | {"data", "method", "layer"},
    "+ key": WEIGHTS | {"data", "method", "layer", "key"},
    "+ data, host": WEIGHTS | {"data", "host"},
    "outputs": OUTPUTS,
    "labels": {"labels", "data"},
}
LEGEND = (
    "Cheapest removal: over all attacks that need no more than the attacker has, the least damage (victim - suspect) "
    "at which the mark was not detected, the attack and its seconds; those that removed it in every seed first. "
    "Weights alone, then more and more; host: the public network that the owner started from; outputs and labels: of a "
    "network behind a service, with data of the attacker's own. What an attack needs is what its configuration states, "
    "whatever the point uses. Attack and strength are chosen on validation data, the damage is told on test data; ± is "
    "a 95% t interval over seeds. never: by none of the attacks that were tried."
)
COLUMNS = [*CELL, "holds", "tried", "cost", "half", "k", "n", "seconds", "limit", "utility_name", "text", "kind"]


def covered(needs: str, holds: str) -> bool:
    """Whether an attack that needs so much (labels.variants: words) can be made by who holds that."""
    return set(needs.split()) <= HOLDS[holds]


def cheapest(costs: pd.DataFrame) -> pd.DataFrame:
    """One line per method (and model, data) and key of HOLDS: COLUMNS of the attack that removes the mark at least
    damage. `costs`: cost.costs. Attacks that removed it in all seeds come before those that did so in some."""
    found = []
    tried = costs[~costs["kind"].isin(["na", "failed"])]
    for (label, model, data), block in tried.groupby(["method_label", "model", "data"], sort=False):
        for holds in HOLDS:
            mine = block[[covered(needs, holds) for needs in block["needs"]]]
            if len(mine):
                found.append({"method_label": label, "model": model, "data": data, "holds": holds} | _best(mine))
    return pd.DataFrame(found, columns=COLUMNS)


def _best(block: pd.DataFrame) -> dict[str, Any]:
    first = block.iloc[0].to_dict() | {"tried": len(block), "attack_label": "", "attack": ""}
    about = {name: first[name] for name in ("method", "attack", "limit", "utility_name", "tried", "attack_label")}
    none = about | {"cost": float("nan"), "half": None, "k": 0, "n": block["n"].max(), "seconds": float("nan")}
    if (block["kind"] == "invalid").any():
        return none | {"text": first["text"], "kind": "invalid"}
    gone = block[block["cost"].notna()]
    if gone.empty:
        lost = (block["kind"] == "warn").any()
        return none | {"text": "lost (new task)" if lost else "never", "kind": "warn" if lost else "good"}
    whole = gone[gone["k"] == gone["n"]]
    best = (whole if len(whole) else gone).sort_values(["weighed", "seconds"], kind="stable").iloc[0]
    name, part = best["utility_name"], f" {best['k']}/{best['n']} seeds" if best["k"] < best["n"] else ""
    text = f"{interval(best['cost'], best['half'], name)} {unit(name)[0]} ({best['attack_label']}{part}"
    text += ")" if missing(best["seconds"]) else f", {_seconds(best['seconds'])})"
    values = {key: best[key] for key in ("cost", "half", "k", "n", "seconds", "attack_label", "attack")}
    return about | values | {"text": text, "kind": "bad" if best["cost"] <= best["limit"] else "warn"}


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def table(found: pd.DataFrame) -> Table:
    """What the attacker has in rows, methods in columns."""
    at = places(found)
    keys = ["model", "data", "attacker has"] if len(at) > 1 else ["attacker has"]
    labels = sorted(set(found["method_label"]), key=natural)
    head = [("", name) for name in [*keys, *labels]]
    made = Table("Cheapest removal by what the attacker has", seeds(found["n"]), head, len(keys))
    cells = {(c.model, c.data, c.holds, c.method_label): c for c in found.itertuples()}
    for model, data in at:
        for holds in HOLDS:
            row = [cells.get((model, data, holds, label)) for label in labels]
            row = [Cell("–") if c is None else Cell(c.text, c.kind, configuration(c)) for c in row]
            made.add(*[model, data, holds][-len(keys) :], *row)
    return made
