"""`train.precision`: what a network is trained in on this machine, found once and kept.

On CUDA `auto` is bfloat16. On a CPU it is bfloat16 where the processor computes that in hardware and some steps of this
network, at this batch, go at least WORTH times as fast as in float32. A short training is not asked: the steps would
cost more than they save, and so its bits are the same on all processors. Marks are read and utility is measured in
float32, whatever a network was trained in.
"""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.errors import ConfigError
from bench.models import anatomy
from bench.models.base import Network
from bench.progress import Say
from bench.store.cache import Cache, cached
from bench.train import Train, last_layout
from bench.types import Task

WORTH = 1.1  # times as fast
LARGE = 1e12  # multiplications in an epoch: some 10 s on two cores
TIMED = 2  # steps of each precision, after one that warms up


def hardware() -> list[str]:
    """What this processor computes bfloat16 with: amx, avx512_bf16; on others than x86 what oneDNN says."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        asked = {"amx": torch.cpu._is_amx_tile_supported, "avx512_bf16": torch.cpu._is_avx512_bf16_supported}
        return [name for name, ask in asked.items() if ask()]
    return ["mkldnn"] if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else []


def resolved(train: Train, model: Network, task: Task, cache: Cache, device: torch.device, say: Say) -> Train:
    """The same schedule with `auto` replaced by the precision that it means here for a network on a task.

    Raises ConfigError where bfloat16 is asked of a device on which torch cannot train in it.
    """
    if train.precision == "bfloat16":
        possible(device)
    if train.precision != "auto":
        return train
    if device.type != "cpu":
        return replace(train, precision="bfloat16" if device.type == "cuda" else "float32")
    return replace(train, precision="bfloat16" if hardware() and _worth(train, model, task, cache, say) else "float32")


def possible(device: torch.device) -> None:
    """Raises ConfigError where torch cannot train in bfloat16 on a device."""
    try:
        layers = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 1)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            layers(torch.ones(2, 1, 4, 4, device=device)).sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"train.precision=bfloat16: torch cannot on {device} ({why}); set float32 or auto") from error


def _worth(train: Train, model: Network, task: Task, cache: Cache, say: Say) -> bool:
    """Whether a training is long enough to ask, and bfloat16 then quicker; both are kept in the cache, so that all runs
    of a sweep, and machines of one kind that share a store, find the same."""
    network = {"model": model.identity(), "input": list(task.example(1).shape), "task": task.kind}

    def counted(_: object) -> dict[str, Any]:
        return {"work": anatomy.work(task.build(model, 0), task.example(1))}

    work = cached(cache, "work", network, counted, say)["work"]
    # Forward, and twice as much backward.
    if 3 * work * task.size("owner") < LARGE:
        return False

    def timed(_: object) -> dict[str, Any]:
        say(f"precision: some steps of {model.title} in float32 and bfloat16, to choose the quicker")
        return {name: seconds(train, model, task, name) for name in ("float32", "bfloat16")}

    kind = [torch.backends.cpu.get_cpu_capability(), *hardware(), torch.get_num_threads(), torch.__version__]
    asked = {**network, "machine": kind, "batch": train.batch_size, "optimizer": train.optimizer}
    entry = cached(cache, "precision", asked, timed, say)
    ratio = entry["float32"] / entry["bfloat16"]
    if entry.built:
        say(f"precision: bfloat16 trains {ratio:.2f} times as fast as float32{'' if ratio >= WORTH else ': float32'}")
    return ratio >= WORTH


def seconds(train: Train, model: Network, task: Task, precision: str) -> float:
    """Of the quickest of some training steps on a batch of noise, in the layout that the precision is trained in."""
    train, device = replace(train, precision=precision), torch.device("cpu")
    net = task.build(model, 0).train()
    if last_layout(net, train, device):
        net.to(memory_format=torch.channels_last)
    optimizer, rng, found = train.optimizer_for(list(net.parameters())), torch.Generator().manual_seed(0), []
    example = task.example(train.batch_size)
    inputs = torch.randint(0, 256, example.shape, generator=rng, dtype=example.dtype)
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        with train.autocast(device):
            loss = net(inputs).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        found.append(time.perf_counter() - started)
    return min(found[1:])
