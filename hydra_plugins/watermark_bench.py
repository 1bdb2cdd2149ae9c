"""Launchers on joblib, submitit (Slurm) and Ray, of which Hydra's own plugins fall short: theirs raise at the first
worker that dies, and what becomes of the other jobs is lost. Here every job of a sweep ends in an outcome.

Hydra takes plugins from below `hydra_plugins` alone. Nothing heavy at import: every start of the command line
imports this.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from bench.cli.sweep import note

Job = tuple[int, Sequence[str]]
ROOT = Path(__file__).resolve().parents[1]


def brief(error: Exception) -> str:
    """What an engine says of a dead worker, in a line: its first two, before the worker's own output."""
    return f"{type(error).__name__}: {' '.join(' '.join(str(error).splitlines()[:2]).split()):.300}"


class Work:
    """One job in a worker, and all that the worker needs for it."""

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        self.state, self.cwd = Singleton.get_state(), os.getcwd()

    def __call__(self, num: int, overrides: Sequence[str]) -> str:
        os.chdir(self.cwd)  # a relative results_dir is the submitter's
        setup_globals()
        Singleton.set_state(self.state)
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{num}"
            config.hydra.job.num = num
        HydraConfig.instance().set_config(config)
        done = run_job(
            hydra_context=self.context,
            config=config,
            task_function=self.task,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        return done.return_value

    def checkpoint(self, *args: Any) -> Any:
        """submitit calls this when Slurm preempts a job: queued again, it goes on from its last finished stage."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


class Workers(Launcher):
    """What launchers have in common; `results` is what differs: it yields (number, status or what went wrong)."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def results(self, work: Work, jobs: list[Job]) -> Iterator[tuple[int, str | Exception]]:
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = list(enumerate(job_overrides, initial_job_idx))
        title = {num: " ".join(filter_overrides(words)) for num, words in jobs}
        returns = []
        for num, result in self.results(Work(self.context, self.task, self.config), jobs):
            if isinstance(result, Exception):
                note(folder, num, "failed", title[num], f"its worker died: {brief(result)}")
                result = "failed"
            returns.append(JobReturn(title[num].split(), status=JobStatus.COMPLETED, _return_value=result))
        return returns


class Slurm(Workers):
    """submitit: an array task per job. `cluster=local` starts them as processes here instead, all at once."""

    def results(self, work: Work, jobs: list[Job]) -> Iterator[tuple[int, str | Exception]]:
        import submitit

        options = {name: value for name, value in self.options.items() if value is not None}
        first = {name: options.pop(name) for name in ("cluster", "slurm_max_num_timeout")}
        try:
            executor = submitit.AutoExecutor(Path(self.config.hydra.sweep.dir) / "submitit", **first)
            executor.update_parameters(**options)
            submitted = executor.map_array(work, *zip(*jobs, strict=True))
        except Exception as error:  # no Slurm here, an option it does not know, a refusal of sbatch
            sys.exit(f"error: launcher=slurm: {' '.join(str(error).split())}")
        try:
            for (num, _), job in zip(jobs, submitted, strict=True):
                try:
                    result = job.result()
                except Exception as error:
                    result = error
                ended = "died" if isinstance(result, Exception) else result
                print(f"[{num + 1}] {ended}: {job.paths.stderr}", file=sys.stderr, flush=True)
                yield num, result
        except KeyboardInterrupt:
            for job in submitted:
                job.cancel(check=False)
            raise


class Ray(Workers):
    """Tasks on the Ray cluster that this machine belongs to or `address` names; without one, on this machine."""

    def results(self, work: Work, jobs: list[Job]) -> Iterator[tuple[int, str | Exception]]:
        import ray

        # Workers are started by the cluster's nodes, in their environment: ours has to be named.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        waiting = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
        env = {"env_vars": {"PYTHONPATH": path, **waiting}}
        options = dict(self.options)
        try:
            # A sweep in batches (hydra.sweeper.max_batch_size) comes here again.
            if not ray.is_initialized():
                ray.init(address=options["address"], runtime_env=env, logging_level="warning")
            del options["address"]
            # A task whose worker or node died is begun again elsewhere: what it had finished is in the cache.
            task, shared = ray.remote(**options)(_task), ray.put(work)
        except Exception as error:  # no cluster at that address, an option it does not know
            sys.exit(f"error: launcher=ray: {' '.join(str(error).split())}")
        pending = {task.remote(shared, num, list(words)): num for num, words in jobs}
        while pending:
            # Those that end within a second are taken together: a wait costs time for each that it waits for.
            ended = ray.wait(list(pending), num_returns=1)[0]
            for ref in {*ended, *ray.wait(list(pending), num_returns=len(pending), timeout=1)[0]}:
                try:
                    result = ray.get(ref)
                except Exception as error:
                    result = error
                yield pending.pop(ref), result


def _task(work: Work, num: int, overrides: Sequence[str]) -> str:
    return work(num, overrides)


# A launcher whose engine is not installed is one that Hydra does not know.
with contextlib.suppress(ImportError):
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

    class Joblib(JoblibLauncher):
        """Hydra's joblib launcher. A worker that dies ends the pool: jobs without an outcome have failed."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            try:
                return super().launch(job_overrides, initial_job_idx)
            except Exception as error:
                folder = Path(self.config.hydra.sweep.dir)
                why = f"not finished: {brief(error)}"
                for num, words in enumerate(job_overrides, initial_job_idx):
                    if not (folder / f"job-{num}.json").exists():
                        note(folder, num, "failed", " ".join(filter_overrides(words)), why)
                return []


for name, engine, launcher in (("slurm", "submitit", Slurm), ("ray", "ray", Ray)):
    if find_spec(engine):
        node = {"_target_": f"{__name__}.{launcher.__name__}"}
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="watermark_bench")
