"""Sweeps on joblib, submitit and Ray: the order of jobs, whose mark is trained where, and workers that die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, read_write

from bench.cli import usage
from bench.cli.sweep import Sweep, turn
from tests.helpers import ROOT, TINY, command

GRID = ["-m", *TINY, "train.epochs=1", "method=uchida,none", "attack=noise,none", "seed=0,1", "threads=1"]
HERE = {
    "joblib": ["launcher=joblib"],
    "slurm": ["launcher=slurm", "hydra.launcher.cluster=local"],
    "ray": ["launcher=ray", "hydra.launcher.address=local"],
}
# Kills its worker while there is a file of that name in the sweep's working folder: once, or every time.
DEADLY = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from attacks.none import None_

@dataclass(frozen=True)
class Deadly(None_):
    """Kills its worker."""
    def run(self, victim, rng, fit):
        if Path("once").exists():
            Path("once").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if Path("always").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return iter(())
'''


def needs(engine: str):
    return pytest.mark.skipif(not find_spec(engine), reason=f"{engine} is not installed")


ENGINES = [
    pytest.param("joblib", marks=needs("joblib")),
    pytest.param("slurm", marks=needs("submitit")),
    pytest.param("ray", marks=needs("ray")),
]


def order(choice: str, *words: str) -> list[list[str]]:
    """The jobs of a sweep as Hydra's sweeper makes them, after the callback."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=choice.split(), return_hydra_config=True)
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        with read_write(config.hydra):
            config.hydra.overrides.task = list(words)
        Sweep().on_multirun_start(config)
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*params, *config.hydra.overrides.task]), None)
    return jobs


def test_the_attack_varies_slowest_where_jobs_run_at_once():
    words = ["method=uchida,none", "attack=prune,noise", "seed=0,1"]
    plain, parallel = order("launcher=local", *words), order("launcher=joblib", *words)
    assert [job[1] for job in plain[:4]] == ["attack=prune"] * 2 + ["attack=noise"] * 2
    assert [job[0] for job in parallel] == ["attack=prune"] * 4 + ["attack=noise"] * 4
    # Method and seed, that is the mark, vary as they did.
    marks = [["method=uchida", "seed=0"], ["method=uchida", "seed=1"], ["method=none", "seed=0"]]
    assert [job[1:] for job in parallel[:3]] == marks
    assert {frozenset(job) for job in parallel} == {frozenset(job) for job in plain}


def test_an_experiment_is_reordered_too_and_the_command_line_still_wins():
    words = ["method=uchida,none", "attack.seed=1,2", "attack=noise,prune"]
    plain = order("experiment=digits", *words)
    parallel = order("experiment=digits launcher=joblib", *words)
    assert plain[1] == ["method=uchida", "attack=noise", "attack.seed=2"]
    assert parallel[:3] == [
        ["attack=noise", "attack.seed=1", "method=uchida"],
        ["attack=noise", "attack.seed=1", "method=none"],
        ["attack=noise", "attack.seed=2", "method=uchida"],
    ]
    assert {frozenset(job) for job in parallel} == {frozenset(job) for job in plain}


@pytest.mark.parametrize(
    ("gpus", "devices"), [(0, ["auto"] * 3), (1, ["auto"] * 3), (2, ["cuda:0", "cuda:1", "cuda:0"])]
)
def test_several_gpus_take_turns(monkeypatch, gpus, devices):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert [turn(num) for num in range(3)] == devices


@pytest.mark.parametrize("name", HERE)
def test_an_engine_that_is_not_installed_is_one_line(monkeypatch, name):
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{name}.yaml", raising=False)
    assert usage.problem([f"launcher={name}"]) == f"launcher={name} is not installed: pip install -e '.[{name}]'"


def test_a_command_line_is_looked_at_without_asking_for_a_running_job():
    # What conf/launcher/ray.yaml does; Ray itself need not be here.
    cfg = OmegaConf.create({"threads": "${hydra:launcher.num_cpus}", "data": {"path": "???", "label": None}})
    assert usage._hole(cfg) == "data.path"


def rows(results: Path) -> dict[str, list[dict]]:
    """Every run file below a folder, without what no two runs share."""
    own = {"seconds", "peak_mb", "created_at", "commit"}
    return {
        str(path.relative_to(results)): [
            {name: value for name, value in row.items() if name not in own}
            for row in json.loads(path.read_text())["rows"]
        ]
        for path in (results / "runs").rglob("*.json")
    }


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> dict[str, list[dict]]:
    """What GRID gives without a launcher."""
    folder = tmp_path_factory.mktemp("plain")
    done = command(*GRID, cwd=folder)
    assert done.returncode == 0, done.stderr
    return rows(folder / "results")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_launcher_gives_the_rows_of_a_plain_sweep_and_trains_nothing_twice(tmp_path, plain, engine):
    done = command(*GRID, *HERE[engine], cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "done 8, cached 0, skipped 0, failed 0" in done.stdout
    assert rows(tmp_path / "results") == plain
    logs = done.stdout + done.stderr
    logs += "".join(p.read_text() for p in (tmp_path / "results" / "sweeps").rglob("*.err"))
    assert logs.count("host: training") == 2
    assert logs.count("mark: embedding") == 2
    (notes,) = (tmp_path / "results" / "sweeps").glob("*/jobs.json")
    jobs = [note["job"].split() for note in json.loads(notes.read_text())]
    assert [job[0] for job in jobs] == ["attack=noise"] * 4 + ["attack=none"] * 4
    again = command(*GRID, *HERE[engine], cwd=tmp_path, HOME=str(tmp_path))
    assert "done 0, cached 8, skipped 0, failed 0" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_job_whose_worker_died_has_failed_and_the_same_command_goes_on(tmp_path, engine):
    (tmp_path / "conf" / "attack").mkdir(parents=True)
    (tmp_path / "deadly.py").write_text(DEADLY)
    node = (ROOT / "conf" / "attack" / "none.yaml").read_text().replace("attacks.none.None_", "deadly.Deadly")
    (tmp_path / "conf" / "attack" / "deadly.yaml").write_text(node)
    words = ["--config-dir", "conf", "-m", *HERE[engine], *TINY, "train.epochs=1", "method=none", "attack=deadly,none"]
    words += ["seed=0,1", "threads=1", *(["hydra.launcher.max_retries=1"] if engine == "ray" else [])]
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "HOME": str(tmp_path)}
    (tmp_path / "always").touch()
    done = command(*words, cwd=tmp_path, **env)
    assert done.returncode == 1, done.stderr
    counts = dict(
        part.split() for part in next(s for s in done.stdout.splitlines() if s.startswith("done ")).split(", ")
    )
    # joblib loses its pool with the worker; the others go on with the other jobs.
    assert sum(map(int, counts.values())) == 4
    assert counts["failed"] == "2" or engine == "joblib"
    assert int(counts["failed"]) >= 2
    assert "failed: attack=deadly" in done.stdout
    assert "Traceback" not in done.stderr
    (tmp_path / "always").unlink()
    again = command(*words, cwd=tmp_path, **env)
    assert again.returncode == 0, again.stderr
    assert "failed 0" in again.stdout
    assert len(rows(tmp_path / "results")) == 4
    if engine == "ray":
        # Dying once costs nothing but time.
        (tmp_path / "once").touch()
        done = command(*words, "results_dir=other", cwd=tmp_path, **env)
        assert "done 4, cached 0, skipped 0, failed 0" in done.stdout
        assert not (tmp_path / "once").exists()


def family(pid: int) -> list[int]:
    """A process and all that it started, as far as they are alive."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def kill(process: subprocess.Popen) -> None:
    for pid in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@needs("ray")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the test finds a node's processes in /proc")
def test_a_ray_node_killed_in_the_middle_of_a_sweep_costs_no_row(tmp_path, plain):
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    # A short folder, because Ray puts sockets there, and one of its own, so that no other cluster is disturbed.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        start = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            "--num-cpus=1",
            "--disable-usage-stats",
        ]
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        # Ray leaves a token in ~/.ray when it first runs alone, and a cluster started later asks its clients for it.
        env = {**os.environ, "HOME": folder, "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
        nodes = [subprocess.Popen([*start, *head], **quiet)]
        try:
            probe = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(len(ray.nodes()))"

            def wait_for(count: int) -> None:
                for _ in range(30):
                    seen = subprocess.run(
                        [sys.executable, "-c", probe, address], capture_output=True, text=True, env=env
                    )
                    if seen.stdout.strip() == str(count):
                        return
                    time.sleep(2)
                raise AssertionError(f"no cluster of {count}: {seen.stderr}")

            wait_for(1)
            nodes.append(subprocess.Popen([*start, f"--address={address}"], **quiet))
            wait_for(2)
            words = [sys.executable, "-m", "bench", *GRID, "launcher=ray", f"hydra.launcher.address={address}"]
            with open(tmp_path / "log", "w") as log:
                sweep = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT)
                while sweep.poll() is None and not any((tmp_path / "results" / "runs").rglob("*.json")):
                    time.sleep(0.1)
                assert sweep.poll() is None, (tmp_path / "log").read_text()
                kill(nodes[1])
                assert sweep.wait(timeout=500) == 0, (tmp_path / "log").read_text()
        finally:
            for node in nodes:
                kill(node)
    text = (tmp_path / "log").read_text()
    assert "skipped 0, failed 0" in text
    assert rows(tmp_path / "results") == plain
    (notes,) = (tmp_path / "results" / "sweeps").glob("*/jobs.json")
    assert len(json.loads(notes.read_text())) == 8
