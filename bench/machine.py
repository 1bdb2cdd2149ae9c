"""This machine: the device, how its sums are kept the same, the harness's commit, a point's seconds and memory."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from bench.errors import ConfigError, UserError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError for a device that this machine lacks."""
    if name.startswith("gpu"):
        raise ConfigError(f"device={name}: write device={name.replace('gpu', 'cuda', 1)}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} is not to be had here: {str(error).splitlines()[0]}; try auto") from error
    return device


@lru_cache
def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_of(net: nn.Module) -> torch.device:
    """Where a network lives: by its first buffer or, where there is none, its first parameter."""
    found = next(net.buffers(), None)  # quantisation leaves no parameters, and a service shows none
    return (next(net.parameters(), torch.empty(0)) if found is None else found).device


def deterministic(threads: int | None) -> None:
    """The same numbers from the same configuration; `threads` of the CPU (None: as torch finds best)."""
    if threads:
        torch.set_num_threads(threads)
    # cuBLAS reads this when the first handle is made; without it matrix products refuse to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms(True, warn_only=True), which would import torch's compiler first: a second or more.
    torch.set_deterministic_debug_mode("warn")
    # It would also fill every new tensor with nan, lest anybody reads what was never written: a fifth of the time of a
    # small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # what it would tell the compiler


def threads() -> int:
    """Of the CPU, for this process."""
    return torch.get_num_threads()


@lru_cache
def commit() -> str | None:
    """The harness's own commit, with `+` for uncommitted changes; None outside a checkout."""
    try:
        root = Path(__file__).resolve().parents[1]
        if not (root / ".git").exists():  # installed: a checkout further up is somebody else's
            return None
        head = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(head, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def start(device: torch.device) -> float:
    """Begin a measurement: the device has finished what came before, the memory's high-water mark is reset."""
    settle(device)
    reset_peak(device)
    return time.perf_counter()


def stop(device: torch.device, started: float) -> tuple[float, float]:
    """(seconds, peak MiB) since `start`, everything finished."""
    settle(device)
    return round(time.perf_counter() - started, 3), peak_mb(device)


def memory() -> int:
    """Bytes that this process may use at all: the machine's with what it swaps to, or what its container is given."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total += 1024 * int(lines.get("SwapTotal", "0 kB").split()[0])
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max"
            total = min(total, int(Path(file).read_text()))
    return total


def afford(needed: int, what: str, options: str) -> None:
    """Raises ConfigError where `what` takes more bytes than there are, so that nobody asks for them: a system that
    promises more than it has kills whoever uses it. `options`: what makes it smaller."""
    if needed > (there := memory()):
        raise ConfigError(f"{what} takes {needed / 1e9:,.0f} GB of memory, of {there / 1e9:,.0f}: lower {options}")


def frugal() -> None:
    """Let this process have no more memory than there is: what asks for more is then told so, not killed. Without a GPU
    only, whose driver reserves addresses beyond all memory."""
    if torch.cuda.is_available():
        return
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = memory() if resource.RLIM_INFINITY in (soft, hard) else min(memory(), soft)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def out_of_memory(error: BaseException) -> UserError | None:
    """What to do about an exception that says there is no more memory, of the CPU or of a GPU; None for any other."""
    said = str(error)
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in said
    if not known:
        return None
    asked = re.search(r"allocate ([\d.,]+ \w+)", said)
    more = f" ({asked[1]} more were asked for)" if asked else ""
    return UserError(f"out of memory{more}; lower train.batch_size, data.image_size or the network's size")


def settle(device: torch.device) -> None:
    """Wait for the device: CUDA kernels are launched, not awaited."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Start a new high-water mark (on Linux the kernel lets a process reset its own)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Highest memory in MiB since `reset_peak`; where the mark cannot be reset, since the process began."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
