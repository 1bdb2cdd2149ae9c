"""Peak memory of one point: of the device where there is a GPU, else of this process."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch


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
