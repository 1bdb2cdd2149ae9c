"""Cells whose replicates were made with different numbers of CPU threads."""

from __future__ import annotations

from typing import Any

import pandas as pd

CELL = ["method_label", "attack_label", "model", "data"]


def mixed(runs: list[dict[str, Any]], rows: pd.DataFrame) -> str:
    """Which cells of labelled rows (bench.report.labels) mix thread counts, in a line; "" where none does.

    Sums of floating-point numbers differ with the number of threads, and so do weights that are trained: such
    replicates differ by more than their seed. On a GPU the CPU's threads change nothing. Rows of before the number was
    noted have that of their run.
    """
    noted = {run["rows"][0]["run_id"]: run["env"].get("threads") for run in runs if run["rows"]}
    threads = rows["threads"].where(rows["threads"].notna(), rows["run_id"].map(noted))
    made = rows.assign(threads=pd.to_numeric(threads, errors="coerce"))
    made = made[made["threads"].notna() & (made["device"] == "cpu") & (made["status"] == "ok")]
    points = made.groupby([*CELL, "knob", "strength"], dropna=False)["threads"]
    cells = made[points.transform("nunique") > 1]
    if cells.empty:
        return ""
    first = cells.drop_duplicates(CELL)
    said = "; ".join(f"{c.method_label} under {c.attack_label} on {c.model}, {c.data}" for c in first[:3].itertuples())
    more = f"; and {len(first) - 3:,} more" if len(first) > 3 else ""
    counts = ", ".join(f"{n:g}" for n in sorted(cells["threads"].unique()))
    return f"replicates made with {counts} CPU threads in one cell, which differ by more than their seed: {said}{more}"
