"""The command line's entry for Hydra, importable by name so that launcher workers find it. No torch at import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bench.cli.compose import CONF, beside
from bench.cli.sweep import JOBS, note, one_by_one, turn
from bench.errors import plain
from bench.progress import spoken


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> str:
    """One job: run it, print its table; in a sweep leave its outcome where the sweep's end finds it."""
    from bench import machine
    from bench.cli import terminal
    from bench.run import job

    plain()  # here too: a launcher's worker comes by no other way
    machine.frugal()
    hydra = HydraConfig.get()
    beside(own(hydra))  # here, and not where the command was read: a sweep's jobs may be processes of their own
    if hydra.job.chdir:
        os.chdir(hydra.runtime.cwd)  # results_dir and data.path are those of where the command was given
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
    with terminal.live(place) if alone else spoken(terminal.say) as (say, progress):
        outcome = job(cfg, say, progress, given(hydra))
    if outcome.rows:
        judge = (cfg.attack.goal, cfg.verify.alpha, cfg.verify.max_damage)
        terminal.table(outcome.rows, *judge, outcome.boundary, outcome.controls, cfg.verify.get("claim"))
    if outcome.outputs and "written" in outcome.outputs[0]:
        terminal.writings(outcome.outputs, outcome.figure)
    elif outcome.outputs:
        terminal.pictures(outcome.outputs, outcome.rows[0].seed, outcome.figure)
    elif outcome.figure:
        print(outcome.figure)
    if outcome.status == "failed":
        terminal.say(f"error: {outcome.message}")
    elif outcome.path is not None:
        print(f"{outcome.path}{' (was there already)' if outcome.status == 'cached' else ''}", flush=True)
    if sweep:
        note(Path(hydra.runtime.output_dir), hydra.job.num, outcome.status, title, outcome.message)
    elif outcome.status == "failed":
        sys.exit(outcome.code)
    return outcome.status


def given(hydra: DictConfig) -> list[str]:
    """What the job was given after `python -m bench`; in a sweep, what is its own of that."""
    return [*(word for path in own(hydra) for word in ("--config-dir", path)), *hydra.overrides.task]


def own(hydra: DictConfig) -> list[str]:
    """The folders that --config-dir names."""
    return [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
