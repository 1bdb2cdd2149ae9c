"""A sweep on a real Slurm with one of its tasks killed: the same command goes on, and rows are those of a plain sweep.

`python -m tests.system.slurm` starts a cluster of one node on this machine, as root, in a temporary folder and on free
ports: munge, MariaDB for the accounting, slurmdbd, slurmctld, slurmd (Debian: slurm-wlm slurmdbd mariadb-server munge).
Nothing of an installed cluster is touched. Exit status 1 where rows differ, 0 with a reason where something is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.helpers import ROOT
from tests.system.kills import GRID, differences, rows

NEEDED = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
PATIENCE = 900.0  # seconds for whatever is waited for
LONG = "train.epochs=60"  # seconds of training, in which a task can be killed
ON_SLURM = ("launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "threads=1")


def missing() -> str:
    """Why there can be no cluster here, or an empty string."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if not find_spec("submitit"):
        return "submitit is not installed"
    if gone := [name for name in NEEDED if not shutil.which(name)]:
        return f"{', '.join(gone)} not installed"
    return "" if os.geteuid() == 0 else "only root can start a node"


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(what: str, ready: list[str] | None = None, file: Path | None = None, **env: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if file is not None and file.exists():
            return
        if ready and subprocess.run(ready, capture_output=True, env={**os.environ, **env}).returncode == 0:
            return
        time.sleep(0.5)
    raise RuntimeError(f"{what} did not start")


def _configured(base: Path) -> dict[str, Path]:
    """Write the configuration of a cluster of one node; the files that its daemons are given."""
    for name in ("state", "spool", "db", "run"):
        (base / name).mkdir(mode=0o755)
    base.chmod(0o755)
    (base / "munge.key").write_bytes(os.urandom(128))
    (base / "munge.key").chmod(0o400)
    host, database, accounts = socket.gethostname().split(".")[0], _port(), _port()
    munge = f"AuthType=auth/munge\nAuthInfo=socket={base}/run/munge\n"
    (base / "slurmdbd.conf").write_text(
        f"{munge}DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={accounts}\nSlurmUser=root\n"
        f"LogFile={base}/slurmdbd.log\nPidFile={base}/run/slurmdbd.pid\nStorageType=accounting_storage/mysql\n"
        f"StorageHost=127.0.0.1\nStoragePort={database}\nStorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm\n"
    )
    (base / "slurmdbd.conf").chmod(0o600)
    (base / "cgroup.conf").write_text("CgroupPlugin=autodetect\nConstrainRAMSpace=no\n")
    (base / "slurm.conf").write_text(
        f"ClusterName=bench\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\n{munge}"
        f"SlurmctldPort={_port()}\nSlurmdPort={_port()}\nStateSaveLocation={base}/state\nSlurmdSpoolDir={base}/spool\n"
        f"SlurmctldPidFile={base}/run/slurmctld.pid\nSlurmdPidFile={base}/run/slurmd.pid\n"
        f"SlurmctldLogFile={base}/slurmctld.log\nSlurmdLogFile={base}/slurmd.log\nMpiDefault=none\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nReturnToService=2\n"
        f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
        f"AccountingStoragePort={accounts}\nAccountingStoragePass={base}/run/munge\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4000 State=UNKNOWN\n"
        "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
    )
    (base / "my.cnf").write_text(
        f"[mariadbd]\ndatadir={base}/db\nsocket={base}/run/db\nport={database}\nbind-address=127.0.0.1\n"
        f"pid-file={base}/run/db.pid\nuser=root\ninnodb_buffer_pool_size=64M\n"
    )
    return {name: base / name for name in ("slurm.conf", "my.cnf")}


@contextlib.contextmanager
def cluster(base: Path) -> Iterator[dict[str, str]]:
    """A Slurm of one node in a folder; the environment that its clients need."""
    files = _configured(base)
    env = {"SLURM_CONF": str(files["slurm.conf"])}
    daemons: list[subprocess.Popen] = []

    def begin(*words: str | Path) -> None:
        log = open(base / f"{Path(words[0]).name}.out", "w")  # noqa: SIM115 (a daemon's)
        daemons.append(subprocess.Popen([*map(str, words)], stdout=log, stderr=log, env={**os.environ, **env}))

    try:
        places = {"key-file": "munge.key", "socket": "run/munge", "log-file": "munged.log", "seed-file": "run/seed"}
        places["pid-file"] = "run/munged.pid"
        begin("munged", "--foreground", "--force", *(f"--{name}={base / at}" for name, at in places.items()))
        _wait("munged", file=base / "run" / "munge")
        made = ["mariadb-install-db", f"--defaults-file={files['my.cnf']}", "--auth-root-authentication-method=normal"]
        subprocess.run(made, check=True, capture_output=True)
        begin("mariadbd", f"--defaults-file={files['my.cnf']}")
        client = ["mariadb", f"--socket={base}/run/db", "-uroot", "-e"]
        _wait("mariadbd", [*client, "select 1"])
        users = [f"slurm@{host}" for host in ("'%'", "localhost")]
        orders = [f"create user {user} identified by 'slurm'; grant all on slurm.* to {user}" for user in users]
        subprocess.run([*client, "; ".join(["create database slurm", *orders])], check=True, capture_output=True)
        begin("slurmdbd", "-D")
        _wait("slurmdbd", ["sacctmgr", "-n", "list", "cluster"], **env)
        subprocess.run(["sacctmgr", "-i", "add", "cluster", "bench"], capture_output=True, env={**os.environ, **env})
        begin("slurmctld", "-D", "-c")
        _wait("slurmctld", ["scontrol", "ping"], **env)
        begin("slurmd", "-D")
        _wait("slurmd", ["bash", "-c", "sinfo -h -o %T | grep -qE 'idle|mixed|allocated'"], **env)
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _sweep(folder: Path, *more: str, **env: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "bench", *GRID, LONG, *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    log = open(folder / "log", "a")  # noqa: SIM115 (the child's)
    return subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)


def _training(folder: Path) -> str:
    """The number of a task that is training, or an empty string."""
    for path in folder.rglob("submitit/*_log.err"):
        if "training" in path.read_text():
            return path.name.split("_")[1]
    return ""


def _kill(task: str, conf: str) -> int:
    """SIGKILL to the processes of an array's task on our cluster; how many there were."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            env = (folder / "environ").read_bytes().split(b"\0")
            wanted = {f"SLURM_ARRAY_TASK_ID={task}".encode(), f"SLURM_CONF={conf}".encode()}
            if wanted <= {*env} and b"submitit" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def measured(base: Path) -> dict[str, int]:
    """What went wrong, by name, of a sweep with a task killed while it trained, and of the same command again."""
    plain, there = base / "plain", base / "there"
    plain.mkdir()
    there.mkdir()
    assert _sweep(plain).wait(PATIENCE) == 0, (plain / "log").read_text()
    with cluster(base / "cluster") as env:
        sweep, until = _sweep(there, *ON_SLURM, **env), time.monotonic() + PATIENCE
        while not (task := _training(there)) and sweep.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert _kill(task, env["SLURM_CONF"]), f"task {task} has no process"
        status = sweep.wait(PATIENCE)
        said = (there / "log").read_text()
        print(said[-1500:])
        wrong = {"killed task not counted": int(status != 1 or "failed 1" not in said)}
        wrong["not resumed"] = int(_sweep(there, *ON_SLURM, **env).wait(PATIENCE) != 0)
        print((there / "log").read_text()[-600:])
    return wrong | differences(rows(plain), rows(there))


def main() -> int:
    if why := missing():
        print(f"skipped: {why}")
        return 0
    with tempfile.TemporaryDirectory(prefix="slurm") as base:
        Path(base).chmod(0o755)
        (Path(base) / "cluster").mkdir()
        try:
            wrong = measured(Path(base))
        except Exception:
            for log in sorted((Path(base) / "cluster").glob("*.log")):
                print(f"{log.name}: {log.read_text(errors='replace')[-600:]}")
            raise
    print(f"4 jobs, one killed while it trained: {wrong}")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
