"""A sweep's jobs: how many they are, in which order, on which device, and what became of them. No torch at import."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from bench.errors import framed
from bench.store.files import swept, write_json

JOBS = "BENCH_JOBS"  # tells a sweep's jobs how many they are


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
    """Leave a job's outcome in the sweep's folder, for the sweep's end. Raises UserError where it cannot be written."""
    write_json(folder / f"job-{num}.json", {"status": status, "job": job, "message": message})


class Sweep(Callback):
    """Before a multirun, the number and order of its jobs; at its end, one line of what became of them, exit status 1
    if any failed."""

    jobs = 0  # how many there are to be, where that is known

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell the jobs how many they are, and let the attack vary slowest in a parallel sweep: jobs that start
        together then need different marks, where one attack after another on the same mark would all wait for
        whoever trains it."""
        hydra = config.hydra
        for left in Path(hydra.sweep.dir).parent.glob("*/"):  # of sweeps that were killed: nobody writes there again
            swept(left)
        if not hydra.sweeper._target_.endswith(".BasicSweeper"):
            return
        # As the sweeper joins them; a key keeps its first place, and its last value wins.
        words = [*(f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()), *hydra.overrides.task]
        self.jobs = count(words)
        with read_write(hydra), open_dict(hydra):
            hydra.overrides.hydra.append(f"+hydra.job.env_set.{JOBS}={self.jobs}")
            if not one_by_one(hydra):
                words.sort(key=lambda word: not re.match(r"[+~]*([\w/]+@)?attack\b", word))
                hydra.sweeper.params, hydra.overrides.task = {}, words

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # An exception of a callback would be a warning of Hydra's, and the sweep's exit status 0.
        if status := framed(lambda: int(self.told(Path(config.hydra.sweep.dir)))):
            sys.exit(status)

    def told(self, folder: Path) -> bool:
        """Print what became of the jobs, and put it into one file; whether any failed."""
        # Below it: hydra.sweep.subdir may give each job a folder of its own.
        files = sorted(folder.rglob("job-*.json"), key=lambda p: int(p.stem.split("-")[1]))
        jobs = [json.loads(p.read_text()) for p in files]
        ended = {s: sum(j["status"] == s for j in jobs) for s in ("done", "cached", "skipped", "failed")}
        print("\n" + ", ".join(f"{status} {n}" for status, n in ended.items()), flush=True)
        for note in jobs:
            if note["status"] in ("skipped", "failed"):
                print(f"  {note['status']}: {note['job']}: {note['message']}", flush=True)
        if lost := max(0, self.jobs - len(jobs)):
            print(f"  no word of {lost} of {self.jobs} jobs: they were killed, or left it outside {folder}", flush=True)
        # One file for the record instead of one per job.
        write_json(folder / "jobs.json", jobs)
        for path in files:
            with contextlib.suppress(OSError):
                path.unlink()
        return bool(ended["failed"] or lost)
