"""Commands in forked processes: they start at once, for torch is imported, and can be killed anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
FAILED = 70  # exit status of a child that raised
AGED = 2 * 24 * 3600


def warm() -> None:
    """Import what commands need, before there are children: each would do it anew."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import safetensors.torch
    import sklearn.datasets
    import timm
    import torch
    import torchvision

    import attacks.prune
    import bench.cli.main
    import bench.cli.terminal
    import bench.report.figures.static
    import bench.report.page.page
    import bench.run
    import bench.store.compact
    import bench.store.remote
    import methods.uchida

    torch.set_num_threads(1)
    assert all((timm, torchvision, sklearn, safetensors, bench, attacks, methods))


def start(words: Sequence[str], cwd: Path, log: Path, module: str = "bench", die_at: int | None = None) -> int:
    """`python -m MODULE words` in a child; its process id. Output goes to `log`. die_at: the child kills itself before
    that change of a file below `cwd`; a number that is not reached is left beside the log, `<log>.changes`."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = FAILED
    try:
        os.chdir(cwd)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for fd in (1, 2):
            os.dup2(out, fd)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        made = _counted(cwd, die_at) if die_at is not None else [0]
        code = _run(list(words), module)
        Path(f"{log}.changes").write_text(str(made[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _run(words: list[str], module: str) -> int:
    if module == "bench.report":
        from bench.report.__main__ import main

        return main(words)
    from bench.__main__ import run
    from bench.cli import usage
    from bench.cli.help import help_text

    sys.argv = ["bench", *words]
    return usage.answer(words, help_text, run)


def _counted(folder: Path, die_at: int) -> list[int]:
    """Count changes of files below a folder; kill this process before one of them."""
    made, inside = [0], f"{folder}{os.sep}"

    def look(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not (writes or event in CHANGES) or not isinstance(args[0], (str, bytes, os.PathLike)):
            return
        path = os.path.join(inside, os.fsdecode(args[0]))
        if path.startswith(inside):
            made[0] += 1
            if made[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return made


def wait(pid: int) -> int:
    """The exit status of a child, -9 for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(words: Sequence[str], cwd: Path, log: Path, module: str = "bench") -> int:
    """The exit status of a command that is left alone."""
    return wait(start(words, cwd, log, module))


def killed(words: Sequence[str], cwd: Path, log: Path, module: str, at: int | float) -> bool:
    """Whether a command was killed, before its `at`-th change of a file (int) or after `at` seconds (float)."""
    if isinstance(at, int):
        return wait(start(words, cwd, log, module, at)) == -signal.SIGKILL
    pid = start(words, cwd, log, module)
    time.sleep(at)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return wait(pid) == -signal.SIGKILL


def left(folder: Path) -> list[Path]:
    """What writers put aside."""
    return [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial"))]


def age(folder: Path) -> None:
    """Let two days go by for what was left aside: nobody clears away what may still be written."""
    then = time.time() - AGED
    for path in left(folder):
        os.utime(path, (then, then))


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    took, begun = [0.0], time.monotonic()
    yield took
    took[0] = time.monotonic() - begun
