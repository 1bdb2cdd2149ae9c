"""What one point costs: seconds, and peak memory of the GPU where there is one, else of this process."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import torch


def start(device: torch.device) -> float:
    """Begin a measurement: the device has finished what came before, the memory's high-water mark is reset."""
    settle(device)
    reset_peak(device)
    return time.perf_counter()


def stop(device: torch.device, started: float) -> tuple[float, float]:
    """(seconds, peak MiB) since `start`, everything finished."""
    settle(device)
    return round(time.perf_counter() - started, 3), peak_mb(device)


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
