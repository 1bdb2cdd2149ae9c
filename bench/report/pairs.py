"""Methods against each other, seed by seed: replicates of one seed share the host, the data and the batches, so that
the difference between two methods varies less than either."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from bench.report.words import BEFORE, natural

PLACE, AT = ["attack_label", "model", "data"], ["knob", "strength"]
VALUES = ("ber", "utility", "damage")
COLUMNS = [*PLACE, *AT, "method_a", "method_b", "n", *(f"{name}{end}" for name in VALUES for end in ("", "_half"))]


def differences(df: pd.DataFrame) -> pd.DataFrame:
    """Two methods at one strength of one attack: the mean of a - b over the n seeds that both have.

    `df` as from `labels.variants`. BER in [0, 1], utility and damage in points; *_half is the half-width of the 95%
    t interval of the paired differences, nan for one seed. Untouched victims ("before attack") come first.
    """
    rows = df[(df["status"] == "ok") & (df["knob"] != "host") & df["ber"].notna()]
    before = rows["knob"].isin(BEFORE)
    # Every attack's run file repeats the victim. A pivot drops what has no index: -1 for a point without a strength.
    rows = rows.assign(attack_label=rows["attack_label"].mask(before, "before attack"), _last=~before)
    rows = rows.assign(strength=rows["strength"].fillna(-1))
    rows = rows.drop_duplicates([*PLACE, *AT, "method_label", "seed"]).sort_values("_last", kind="stable")
    found = [
        _within(block).assign(**dict(zip(PLACE, at, strict=True))) for at, block in rows.groupby(PLACE, sort=False)
    ]
    if not (found := [made for made in found if len(made)]):
        return pd.DataFrame(columns=COLUMNS)
    every = pd.concat(found, ignore_index=True)
    return every.assign(strength=every["strength"].where(every["strength"] != -1))[COLUMNS]


def _within(block: pd.DataFrame) -> pd.DataFrame:
    """The pairs of one attack, model and data."""
    block = block.assign(ber=block["reading"])
    wide = block.pivot(index=[*AT, "seed"], columns="method_label", values=[*VALUES]).astype(float)
    found = []
    for a, b in combinations(sorted(block["method_label"].unique(), key=natural), 2):
        apart = pd.DataFrame({name: wide[name, a] - wide[name, b] for name in VALUES}).dropna(subset=["ber"])
        groups = apart.groupby(level=AT, sort=False)
        made = groups["ber"].agg(n="size").assign(method_a=a, method_b=b)
        for name in VALUES:
            n = groups[name].count()
            t = pd.Series(stdtrit(np.maximum(n - 1, 1), 0.975), n.index)
            made[name] = groups[name].mean()
            made[f"{name}_half"] = (t * groups[name].std() / np.sqrt(n)).where(n > 1)
        found.append(made.reset_index())
    return pd.concat(found) if found else pd.DataFrame()
