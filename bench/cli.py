"""The command line's entry for Hydra, importable by name so that launcher workers find it. No torch at import."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

# Before torch is imported. OpenMP's threads spin for 3 ms while they wait, which makes two jobs on the same cores ten
# times slower; not to spin at all costs a job that has the cores to itself a quarter. This is 0.1 ms.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
CONF = Path(__file__).resolve().parents[1] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> str:
    """One job: run it, print its table; in a sweep leave its outcome where the sweep's end finds it."""
    from bench import terminal
    from bench.run import job

    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    title = " ".join(HydraConfig.get().overrides.task)
    if sweep:
        terminal.say(f"\n[{HydraConfig.get().job.num + 1}] {title}")
    outcome = job(cfg, terminal.say)
    if outcome.rows:
        terminal.table(outcome.rows, cfg.attack.goal, cfg.verify.alpha, cfg.verify.max_damage, outcome.boundary)
    if outcome.status == "failed":
        terminal.say(f"error: {outcome.message}")
    elif outcome.path is not None:
        print(f"{outcome.path}{' (was there already)' if outcome.status == 'cached' else ''}", flush=True)
    if sweep:
        folder = Path(HydraConfig.get().runtime.output_dir)
        note = {"status": outcome.status, "job": title, "message": outcome.message}
        (folder / f"job-{HydraConfig.get().job.num}.json").write_text(json.dumps(note))
    elif outcome.status == "failed":
        sys.exit(outcome.code)
    return outcome.status


class Sweep(Callback):
    """At the end of a multirun, one line of what became of its jobs; exit status 1 if any failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("job-*.json"), key=lambda p: int(p.stem.split("-")[1]))
        jobs = [json.loads(p.read_text()) for p in files]
        count = {s: sum(j["status"] == s for j in jobs) for s in ("done", "cached", "skipped", "failed")}
        print("\n" + ", ".join(f"{status} {n}" for status, n in count.items()), flush=True)
        for note in jobs:
            if note["status"] in ("skipped", "failed"):
                print(f"  {note['status']}: {note['job']}: {note['message']}", flush=True)
        # One file for the record instead of one per job.
        (folder / "jobs.json").write_text(json.dumps(jobs, indent=1) + "\n")
        for path in files:
            with contextlib.suppress(OSError):
                path.unlink()
        if count["failed"]:
            sys.exit(1)
