"""The tables of a report: what became of each mark, its controls, and every point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench import metrics
from bench.metrics import missing
from bench.report.aggregate import telling
from bench.report.tables import Cell, Table
from bench.report.words import BEFORE, auc, ber, claim, configuration, interval, natural, number, places, seeds, told

CONTROLS = (
    "Controls: the unmarked host under the owner's key; keys drawn at random, message and secret, on the victim, which "
    "are false positives where they verify. The interval is Clopper and Pearson's exact one. A control that detects "
    "makes every verdict of its method INVALID."
)


def summary(df: pd.DataFrame, start: pd.DataFrame, cells: pd.DataFrame, attacks: Sequence[str]) -> Table:
    """Methods in rows, `attacks` in columns: each mark's end. `start`: aggregate.before; `cells`: outcomes.outcomes."""
    begun = {(p.method_label, p.model, p.data, p.knob): p for p in start.itertuples()}
    known = {(c.method_label, c.model, c.data, c.attack_label): c for c in cells.itertuples()}
    place = ["method_label", "model", "data"]
    tried = set(df.loc[df["random_keys"].fillna(0) > 0, place].itertuples(index=False, name=None))
    keys = ["method", "model", "data"] if len(places(df)) > 1 else ["method"]
    head = [("", name) for name in [*keys, "fidelity", "victim BER", "host control", *attacks]]
    table = Table("Summary", seeds(p.n for p in begun.values()), head, len(keys), turns=True)
    methods = {(p.model, p.data, p.method != "none", p.method_label) for p in df.itertuples()}
    for model, data, _, label in sorted(
        methods, key=lambda at: (natural(at[0]), natural(at[1]), at[2], natural(at[3]))
    ):
        at = (label, model, data)
        victim, host = begun.get((*at, "none")), begun.get((*at, "host"))
        fidelity = interval(victim.fidelity, victim.fidelity_half, victim.utility_name, "+") if victim else "–"
        said = "–" if host is None or host.verdict == "unmarked" else host.verdict
        control = Cell(
            f"ok (BER {host.ber:.2f})" if said == "control" else said, "" if said in ("–", "control") else "invalid"
        )
        if said == "control" and at not in tried:
            why = "no random keys were tried on this mark: verify.keys=0, or no run of it went through"
            control = Cell(control.text + table.note(why))
        row: list[str | Cell] = [*at[: len(keys)], fidelity, ber(victim) if victim else "–", control]
        for attack in attacks:
            cell = known.get((*at, attack))
            mark = table.note(cell.reason) if cell and cell.reason else ""
            row.append(Cell(cell.text + mark, cell.kind, configuration(cell)) if cell else "–")
        table.add(*row)
    return table


def controls(df: pd.DataFrame) -> Table:
    """The controls of every mark, seeds pooled: the unmarked host and, for a mark in outputs, whatever else is clean;
    random keys on the victim."""
    hosts = df[df["knob"].map(metrics.is_control) & (df["status"] == "ok")]
    hosts = telling(hosts).drop_duplicates(["method_label", "model", "data", "knob", "strength", "seed", "alpha"])
    keys = ["method", "model", "data"] if len(places(df)) > 1 else ["method"]
    names = ["host BER", "detected", "random keys", "verified", "95% interval", "alpha"]
    counts = hosts.groupby(["method_label", "model", "data"])["seed"].nunique()
    table = Table("Controls", seeds(counts), [("", name) for name in [*keys, *names]], len(keys), turns=True)
    hosts = hosts.assign(what=hosts["knob"].where(hosts["knob"] != "host", ""))
    groups = [*hosts.groupby(["model", "data", "method_label", "what", "alpha"])]
    for (model, data, label, what, alpha), g in sorted(groups, key=lambda at: (*map(natural, at[0][:4]), at[0][4])):
        tried, hits = (0 if what else int(g[name].sum()) for name in ("random_keys", "false_positives"))
        low, high = metrics.clopper_pearson(hits, tried)
        rate = f"{100 * low:.2g} to {100 * high:.2g}%" if tried else "–"
        found = [f"{g['ber'].mean():.3f}", f"{int(g['detected'].astype(bool).sum())} of {len(g)}"]
        found += [f"{tried:,}" if tried else "–", f"{hits:,}" if tried else "–", rate, number(alpha)]
        kind = "invalid" if (g["verdict"] == "FALSE ALARM").any() else ""
        first = [f"{label}, {what}" if what else label, model, data][: len(keys)]
        table.add(*first, *(Cell(text, kind) for text in found))
    return table


def _beats(p: Any, q: Any, apart: dict[tuple, tuple[float, float]]) -> bool:
    """Whether p's BER is below q's beyond the intervals: of each over its bits, and of their difference over seeds."""
    if p.n < 2 or q.n < 2 or p.ber_high >= q.ber_low:
        return False
    at = (p.attack_label, p.model, p.data, p.knob, None if missing(p.strength) else p.strength)
    mean, half = apart.get((*at, p.method_label, q.method_label), (math.nan, math.nan))
    return missing(half) or mean + half < 0  # no interval: fewer than two seeds in common


def _strengths(
    block: pd.DataFrame,
    title: str,
    apart: dict[tuple, tuple[float, float]],
    bad: dict[tuple, str],
    said: Mapping[str, Sequence],
) -> Table:
    # A run without a point gets a note, not columns.
    skipped = block["status"].eq("skipped") & block["knob"].eq("none")
    block, gone = (block[~skipped], block[skipped]) if not skipped.all() else (block, block[:0])
    methods = {(p.method != "none", p.method_label) for p in block.itertuples()}
    methods = sorted(methods, key=lambda at: (at[0], natural(at[1])))
    claims, looks = int(block["claim_ber"].notna().any()), int(block["auc"].notna().any())
    start = block["attack"].eq("none").all()
    knobs = [knob for knob in dict.fromkeys(block["knob"]) if knob not in BEFORE]
    keys = ["model"] if start else knobs if len(knobs) == 1 else ["knob", "strength"]
    place = (block["model"].iloc[0], block["data"].iloc[0])
    words = {label: f"{label} ({bad[label, *place]})" if (label, *place) in bad else label for _, label in methods}
    head = [
        (words[label], name)
        for _, label in methods
        for name in ("BER", *["claim BER"] * claims, *["AUC"] * looks, "utility")
    ]
    n = block.loc[block["status"] == "ok", "n"]
    about = {told(knob, said) for knob in (knobs if len(knobs) < 3 else ())} - {""}
    caption = "; ".join([seeds(n), *sorted(about)])
    table = Table(title, caption, [*(("", key) for key in keys), *head], len(keys))
    _ = [table.note(f"{p.method_label}: skipped: {p.reason}") for p in gone.itertuples()]
    names, last = {"host": "host, owner's key", "none": "victim"} if start else {"none": "–"}, None
    for (knob, strength), at in block.groupby(["knob", "strength"], sort=False, dropna=False):
        name = names.get(knob, knob)
        row, bands = [name] if start else [name, number(strength)][-len(keys) :], {}
        for _, label in methods:
            texts = ["–"] * (2 + claims + looks)
            for p in at[at["method_label"] == label].itertuples():
                if p.status == "ok":
                    utility = interval(p.utility, p.utility_half, p.utility_name)
                    texts = [ber(p), *[claim(p)] * claims, *[auc(p)] * looks, utility]
                    counts = not missing(p.ber) and knob != "host" and words[label] == label
                    bands |= {len(row): p} if counts else {}
                else:
                    mark = table.note(f"{label}: {p.status}: {p.reason}")
                    texts[0] = texts[0].replace("–", p.status) + mark
            row += texts
        if len(keys) > 1 and knob == last:
            row[0] = ""
        last = knob
        for j, p in bands.items():
            others = [q for q in bands.values() if q is not p]
            if others and all(_beats(p, q, apart) for q in others):
                row[j] = Cell(row[j], "best")
        table.add(*row)
    return table


def strengths(
    points: pd.DataFrame, paired: pd.DataFrame, bad: dict[tuple, str], knobs: Mapping[str, Mapping[str, Sequence]]
) -> list[Table]:
    """Every point measured: a table of the untouched models, then one per attack; columns by method.

    `paired` (pairs.differences) decides, beside each BER's own interval, which is bold. A method of which nothing can
    be said (`bad`: outcomes.unsound) says so above its columns and is compared with none. `knobs`: what each attack
    says of its own.
    """
    apart: dict[tuple, tuple[float, float]] = {}
    for d in paired.itertuples():
        at = (d.attack_label, d.model, d.data, d.knob, None if missing(d.strength) else d.strength)
        apart[(*at, d.method_a, d.method_b)] = (d.ber, d.ber_half)
        apart[(*at, d.method_b, d.method_a)] = (-d.ber, d.ber_half)
    groups = points.groupby(["attack_label", "model", "data"], sort=False)
    shown = 3 if len(places(points)) > 1 else 1
    made = []
    for at, block in groups:
        said = knobs.get(block["attack"].iloc[0], {})
        made.append(_strengths(block, ", ".join(at[:shown]), apart, bad, said))
    return made


def legends(df: pd.DataFrame) -> tuple[str, str]:
    """What the cells of the report's summary and of its strengths mean."""
    alpha, limit, utility = (
        " or ".join(x if isinstance(x, str) else number(x) for x in sorted(df[name].dropna().unique()))
        for name in ("alpha", "max_damage", "utility_name")
    )
    bands = "± is a 95% t interval over seeds, [ ] a 95% Wilson interval over pooled bits, wider where seeds differ."
    forged = df["goal"].eq("forge").any()
    tries = " resisted (t tries; 2^w): keys tried, and how many until a claim passes." if forged else ""
    return (
        "Worst outcome over all strengths: the least damage (victim - suspect, at most "
        f"{limit}) at which the mark was not detected (alpha = {alpha}), or else the highest BER survived. "
        f"Fidelity: host - victim.{tries} {bands}",
        f"Utility: {utility}. {bands} * owner's mark not detected (alpha = {alpha}), a read after alignment, i all "
        "bits inverted, ! attacker's claim passes, in ( ) for some seeds only. Bold: BER below all other methods', "
        "beyond the intervals.",
    )
