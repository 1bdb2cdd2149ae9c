"""Who still proves ownership: methods in the order of what attackers of each kind can do to their marks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bench.metrics import missing
from bench.report.content import Content
from bench.report.threats import HOLDS, cheapest
from bench.report.words import interval

RULE = (
    "Methods stand in the order of how many kinds of attacker remove the mark for at most the damage that a success "
    "may cost (columns of removal), then of whether a claim was forged; equals share a place. A method whose control "
    "failed has none. A removal that costs more is told with its cost and does not count. What was not tried (–) "
    "speaks for nobody: of how many kinds that tried is said beside the count."
)


@dataclass(frozen=True)
class Line:
    """One method on one model and data: its place ("" where it has none), how many kinds of attacker remove its mark,
    of how many that tried; outcomes by kind of attacker (text, kind), of claims, and what it costs its owner."""

    place: str
    label: str
    method: str
    model: str
    data: str
    removed: int
    tried: int
    cells: dict[str, tuple[str, str]]
    claims: tuple[str, str]
    fidelity: str
    seconds: str
    seeds: int


def lines(content: Content) -> list[Line]:
    """The leaderboard of each model and data, one after another, best first."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for c in cheapest(content.costs).itertuples():
        found.setdefault((c.model, c.data, c.method_label), {})[c.holds] = c
    start = {(p.method_label, p.model, p.data, p.knob): p for p in content.start.itertuples()}
    made = []
    for (model, data, label), cells in found.items():
        bad = content.unsound.get((label, model, data), "")
        removed = sum(c.kind == "bad" for c in cells.values())
        claims = _claims(content.cells, model, data, label)
        victim = start.get((label, model, data, "none"))
        rank = (bool(bad), removed, claims[1] == "bad")
        told = {name: (cells[name].text, cells[name].kind) if name in cells else ("–", "") for name in HOLDS}
        fidelity = interval(victim.fidelity, victim.fidelity_half, victim.utility_name, "+") if victim else "–"
        seconds = "–" if victim is None or missing(victim.seconds) else f"{victim.seconds:,.0f}"
        method = next(iter(cells.values())).method
        line = Line(
            "",
            label,
            method,
            model,
            data,
            removed,
            len(cells),
            told,
            claims,
            fidelity,
            seconds,
            victim.n if victim else 0,
        )
        made.append(((model, data), rank, line))
    made.sort(key=lambda item: (item[0], item[1], item[2].label))
    return [_placed(line, rank, [r for at, r, _ in made if at == here]) for here, rank, line in made]


def _placed(line: Line, rank: tuple, among: list[tuple]) -> Line:
    if rank[0]:
        return line
    first, equal = 1 + sum(other < rank for other in among), among.count(rank)
    return replace(line, place=f"{first}{'=' * (equal > 1)}")


def _claims(cells: pd.DataFrame, model: str, data: str, label: str) -> tuple[str, str]:
    """What became of forged claims: the worst over the attacks that make them."""
    mine = cells[(cells["method_label"] == label) & (cells["model"] == model) & (cells["data"] == data)]
    mine = mine[mine["text"].str.startswith(("forged", "resisted"))]
    worst = mine[mine["kind"] == "bad"]
    for c in (worst if len(worst) else mine).itertuples():
        return c.text, c.kind
    return "–", ""
