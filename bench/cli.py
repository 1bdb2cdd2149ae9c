"""The command line's entry for Hydra, importable by name so that launcher workers find it. No torch at import."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

# Before torch is imported. OpenMP's threads spin for 3 ms while they wait, which makes two jobs on the same cores ten
# times slower; not to spin at all costs a job that has the cores to itself a quarter. This is 0.1 ms.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
CONF = Path(__file__).resolve().parents[1] / "conf"
JOBS = "BENCH_JOBS"  # tells a sweep's jobs how many they are


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> str:
    """One job: run it, print its table; in a sweep leave its outcome where the sweep's end finds it."""
    from bench import terminal
    from bench.run import job

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    title = " ".join(hydra.overrides.task)
    place = ""
    if sweep:
        jobs = hydra.job.env_set.get(JOBS) if terminal.animated() else None
        place = f"[{hydra.job.num + 1}{f'/{jobs}' if jobs else ''}] "
        terminal.say(f"\n{place}{title}")
        if cfg.device == "auto":
            cfg.device = turn(hydra.job.num)
    # Jobs at the same time cannot each redraw the last line of one terminal.
    alone = not sweep or one_by_one(hydra)
    with terminal.live(place) if alone else nullcontext((terminal.say, terminal.unseen)) as (say, progress):
        outcome = job(cfg, say, progress)
    if outcome.rows:
        judge = (cfg.attack.goal, cfg.verify.alpha, cfg.verify.max_damage)
        terminal.table(outcome.rows, *judge, outcome.boundary, outcome.controls)
    if outcome.outputs:
        terminal.pictures(outcome.outputs, outcome.rows[0].seed, outcome.figure)
    if outcome.status == "failed":
        terminal.say(f"error: {outcome.message}")
    elif outcome.path is not None:
        print(f"{outcome.path}{' (was there already)' if outcome.status == 'cached' else ''}", flush=True)
    if sweep:
        note(Path(hydra.runtime.output_dir), hydra.job.num, outcome.status, title, outcome.message)
    elif outcome.status == "failed":
        sys.exit(outcome.code)
    return outcome.status


def one_by_one(hydra: DictConfig) -> bool:
    """Whether a sweep's jobs run in this process, one after another."""
    return hydra.launcher._target_.endswith(".BasicLauncher")


def turn(num: int) -> str:
    """The device of a sweep's job: with several GPUs each job takes the next one."""
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{num % gpus}" if gpus > 1 else "auto"


def count(words: list[str]) -> int:
    """How many jobs the overrides of a sweep make."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    values = {o.get_key_element(): o for o in parser.parse_overrides(words)}
    return math.prod(sum(1 for _ in o.sweep_string_iterator()) for o in values.values() if o.is_discrete_sweep())


def note(folder: Path, num: int, status: str, job: str, message: str) -> None:
    """Leave a job's outcome in the sweep's folder, for the sweep's end."""
    (folder / f"job-{num}.json").write_text(json.dumps({"status": status, "job": job, "message": message}))


class Sweep(Callback):
    """Before a multirun, the number and order of its jobs; at its end, one line of what became of them, exit status 1
    if any failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell the jobs how many they are, and let the attack vary slowest in a parallel sweep: jobs that start
        together then need different marks, where one attack after another on the same mark would all wait for
        whoever trains it."""
        hydra = config.hydra
        if not hydra.sweeper._target_.endswith(".BasicSweeper"):
            return
        # As the sweeper joins them; a key keeps its first place, and its last value wins.
        words = [*(f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()), *hydra.overrides.task]
        with read_write(hydra), open_dict(hydra):
            hydra.overrides.hydra.append(f"+hydra.job.env_set.{JOBS}={count(words)}")
            if not one_by_one(hydra):
                words.sort(key=lambda word: not re.match(r"[+~]*([\w/]+@)?attack\b", word))
                hydra.sweeper.params, hydra.overrides.task = {}, words

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("job-*.json"), key=lambda p: int(p.stem.split("-")[1]))
        jobs = [json.loads(p.read_text()) for p in files]
        ended = {s: sum(j["status"] == s for j in jobs) for s in ("done", "cached", "skipped", "failed")}
        print("\n" + ", ".join(f"{status} {n}" for status, n in ended.items()), flush=True)
        for note in jobs:
            if note["status"] in ("skipped", "failed"):
                print(f"  {note['status']}: {note['job']}: {note['message']}", flush=True)
        # One file for the record instead of one per job.
        (folder / "jobs.json").write_text(json.dumps(jobs, indent=1) + "\n")
        for path in files:
            with contextlib.suppress(OSError):
                path.unlink()
        if ended["failed"]:
            sys.exit(1)
