"""Run files in which one thing is another: the report of the others comes out."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from tests.fake_runs import plausible, save
from tests.odd import changed
from tests.system import forked

EACH = 10  # odd files beside a report's good ones


def measured(count: int, seed: int, base: Path) -> Counter[str]:
    """Reports of good runs, EACH odd files among them at a time. Counts `files`, `left out` and what went wrong."""
    rng, found, log = np.random.default_rng(seed), Counter(), base / "log"
    base.mkdir(parents=True, exist_ok=True)
    for i in range(-(-count // EACH)):
        folder = base / str(i)
        good = plausible(seeds=(0, 1), attacks=("none", "prune"))
        place = save(folder / "results", good) / "runs"
        for j in range(min(EACH, count - i * EACH)):
            one = changed(good[rng.integers(len(good))], rng)
            (place / f"odd{j}.json").write_text(json.dumps(one))
            found["files"] += 1
        if (
            forked.finish(("--formats", "svg"), folder, log, "bench.report") not in (0, 1)
            or "Traceback" in log.read_text()
        ):
            found["reports lost"] += 1
            print(log.read_text()[-2000:], file=sys.stderr)
            continue
        rows = [*csv.DictReader((folder / "results" / "tables" / "rows.csv").open(encoding="utf-8"))]
        there = {row["run_id"] for row in rows}
        found["good runs lost"] += len({run["rows"][0]["run_id"] for run in good} - there)
        if "warning: left out: " in log.read_text():
            found["reports that say so"] += 1
        shutil.rmtree(folder)
    return found
