"""The command line's entry for Hydra, importable by name so that launcher workers find it. No torch at import."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

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
        if cfg.device == "auto":
            cfg.device = turn(HydraConfig.get().job.num)
    outcome = job(cfg, terminal.say)
    if outcome.rows:
        judge = (cfg.attack.goal, cfg.verify.alpha, cfg.verify.max_damage)
        terminal.table(outcome.rows, *judge, outcome.boundary, outcome.controls)
    if outcome.status == "failed":
        terminal.say(f"error: {outcome.message}")
    elif outcome.path is not None:
        print(f"{outcome.path}{' (was there already)' if outcome.status == 'cached' else ''}", flush=True)
    if sweep:
        folder = Path(HydraConfig.get().runtime.output_dir)
        note(folder, HydraConfig.get().job.num, outcome.status, title, outcome.message)
    elif outcome.status == "failed":
        sys.exit(outcome.code)
    return outcome.status


def turn(num: int) -> str:
    """The device of a sweep's job: with several GPUs each job takes the next one."""
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{num % gpus}" if gpus > 1 else "auto"


def note(folder: Path, num: int, status: str, job: str, message: str) -> None:
    """Leave a job's outcome in the sweep's folder, for the sweep's end."""
    (folder / f"job-{num}.json").write_text(json.dumps({"status": status, "job": job, "message": message}))


class Sweep(Callback):
    """Before a multirun, the order of its jobs; at its end, one line of what became of them, exit status 1 if any
    failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Let the attack vary slowest in a parallel sweep: jobs that start together then need different marks, where
        one attack after another on the same mark would all wait for whoever trains it."""
        hydra = config.hydra
        if hydra.launcher._target_.endswith(".BasicLauncher") or not hydra.sweeper._target_.endswith(".BasicSweeper"):
            return
        # As the sweeper joins them; a key keeps its first place, and its last value wins.
        words = [*(f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()), *hydra.overrides.task]
        words.sort(key=lambda word: not re.match(r"[+~]*([\w/]+@)?attack\b", word))
        with read_write(hydra), open_dict(hydra):
            hydra.sweeper.params, hydra.overrides.task = {}, words

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
