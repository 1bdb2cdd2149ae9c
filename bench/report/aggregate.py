"""Labelled rows -> points: means over seeds, with the intervals of the protocol."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from bench import metrics
from bench.metrics import NO_HOST, NO_MARK, few, missing
from bench.report.words import BEFORE, CELL, natural

MEANS = ("claim_ber", "utility_victim", "utility_host", "seconds")
POINT = [*CELL, "knob", "strength", "config_hash", "status"]
GOALS = ("removal", "overwrite", "forge", "secrecy")
# What a point is called when its seeds disagree: the worst for the owner comes first.
WORST = (
    "FALSE ALARM",
    NO_HOST,
    NO_MARK,
    few(None),
    few("bleu"),
    "forged",
    "overwritten",
    "removed",
    "ambiguous",
    "shows",
    "later claim",
)
WORST += ("lost", "destroyed")


def _point(key: tuple, g: pd.DataFrame) -> dict[str, Any]:
    point = dict(zip(POINT, key, strict=True)) | {"n": g["seed"].nunique()}
    point |= {name: g[name].iloc[0] for name in ("goal", "alpha", "bar", "max_damage", "utility_name", "falls")}
    ok = g[g["status"] == "ok"]
    bits = ok.dropna(subset=["reading", "n_bits"])
    trials, errors = int(bits["n_bits"].sum()), float((bits["reading"] * bits["n_bits"]).sum())
    low, high = metrics.pooled(bits["reading"] * bits["n_bits"], bits["n_bits"]) if trials else (math.nan, math.nan)
    point |= {"n_bits": ok["n_bits"].max(), "ber": errors / trials if trials else math.nan}
    point |= {"ber_low": low, "ber_high": high, "log10_p_worst": ok["evidence"].max(), "tests": ok["tests"].max()}
    point["chance"] = ok["chance"].fillna(0.5).max()  # seeds may differ: that which asks for most
    point |= {name: (bits["how"] == name).mean() for name in (metrics.ALIGNED, metrics.INVERTED)}
    point |= {"log10_p": ok["evidence"].median(), "claim_log10_p": ok["claim_log10_p"].median()}
    point |= {name: ok[name].mean() for name in (*MEANS, "weighed")}
    point |= {name: ok[name].astype(float).mean() for name in ("auc", "auc_low", "auc_high")}
    point |= {name: ok[name].dropna().astype(float).mean() for name in ("detected", "claim_detected")}
    for name in ("utility", "damage", "fidelity"):
        mean, half = metrics.t_interval(ok[name])
        point |= {name: mean, f"{name}_half": math.nan if half is None else half}
    counts = Counter(g["verdict"])
    worst = next((v for v in WORST if v in counts), min(counts))
    point["verdict"] = worst if len(counts) == 1 else f"{counts[worst]}/{len(g)} {worst}"
    point["reason"] = "; ".join(dict.fromkeys(str(e) for e in g["error"] if not missing(e)))
    return point


def aggregate(df: pd.DataFrame) -> pd.DataFrame:
    """One line per variant and strength over its seeds: pooled BER, its interval and t intervals, verdict.

    ber: of the readings that verdicts rest on (bench.metrics.reading); aligned, inverted: shares of seeds read so.
    `status` is part of the key: skipped and failed rows get lines of their own and enter no mean. *_half are
    half-widths of 95% t intervals (nan for one seed); detected and claim_detected are shares of seeds.
    """
    knobs = [*BEFORE, *dict.fromkeys(df["knob"])]

    def order(p: dict[str, Any]) -> tuple:
        goal = GOALS.index(p["goal"]) if p["attack"] != "none" and p["goal"] in GOALS else -1
        strength = math.inf if missing(p["strength"]) else -p["strength"] if p["falls"] else p["strength"]
        knob = knobs.index(p["knob"]) if p["status"] == "ok" or p["knob"] not in BEFORE else len(knobs)
        place = (goal, *(natural(p[name]) for name in ("attack_label", "model", "data")), knob, strength)
        return (*place, p["method"] != "none", natural(p["method_label"]))

    groups = df.groupby(POINT, sort=False, dropna=False)
    return pd.DataFrame(sorted((_point(key, g) for key, g in groups), key=order))


def telling(rows: pd.DataFrame) -> pd.DataFrame:
    """Of several files that hold the same, first the one whose control detects, then those that tried random keys (a
    run that failed did not), then attack=none."""
    order = np.lexsort([rows["attack"] != "none", rows["random_keys"].isna(), rows["verdict"] != "FALSE ALARM"])
    return rows.iloc[order]


def before(df: pd.DataFrame) -> pd.DataFrame:
    """Control and untouched victim, aggregated once per method: every attack's run file repeats them."""
    rows = df[df["knob"].isin(BEFORE) & (df["status"] == "ok")]
    rows = telling(rows).drop_duplicates(["method_label", "model", "data", "knob", "seed"])
    rows = rows.assign(attack="none", attack_label="before attack", config_hash="", goal="removal")
    return aggregate(rows) if len(rows) else aggregate(df).iloc[:0]


def points(start: pd.DataFrame, agg: pd.DataFrame) -> pd.DataFrame:
    """Every point once: `start` (see `before`), then what the attacks made."""
    made = ~agg["knob"].isin(BEFORE) | (agg["status"] != "ok")
    return pd.concat([start, agg[made]], ignore_index=True)
