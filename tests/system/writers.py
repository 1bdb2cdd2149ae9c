"""Several processes on one results folder at the same moment: each model is trained once, rows are a single one's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.system import forked
from tests.system.kills import GRID, differences, rows


def measured(count: int, base: Path) -> Counter[str]:
    """`count` processes that all do the same sweep. Counts models that were trained, and what went wrong."""
    alone, together = base / "alone", base / "together"
    for folder in (alone, together):
        folder.mkdir(parents=True)
    assert forked.finish(GRID, alone, base / "log") == 0, (base / "log").read_text()
    truth, logs = rows(alone), [base / f"log{i}" for i in range(count)]
    codes = [*map(forked.wait, [forked.start(GRID, together, log) for log in logs])]
    said = "".join(log.read_text() for log in logs)
    models = {str(p.relative_to(together)) for p in together.glob("results/cache/*/*/model.safetensors")}
    trained = said.count("host: training") + said.count("mark: embedding")
    found = Counter(
        models=len(models), trained_twice=trained - len(models), ended_badly=sum(code != 0 for code in codes)
    )
    return found + differences(truth, rows(together)) + Counter({"files left": len(forked.left(together))})
