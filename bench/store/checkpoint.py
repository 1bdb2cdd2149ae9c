"""A stage's training kept on disk while it goes on: killed, the same command goes on from there, to the same bits.

A stage may train several times (a barrier, then an extractor): its fits are counted, and each has a file of its own.
Which of them are there decides only how much is done again. Only safetensors and JSON are read: no pickle.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.progress import Say
from bench.store.files import published


@dataclass
class Checkpoint:
    """Of one stage: the folder beside it, and minutes between savings. Its files are removed with the folder.

    spent: seconds of training, by processes that were killed, that what was restored saves.
    """

    folder: Path
    minutes: float
    say: Say
    fits: int = 0
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    @property
    def file(self) -> Path:
        """Of the fit that is going on, the latest that began."""
        return self.folder / f"{self.fits}.safetensors"

    def restored(self, model: nn.Module, optimizer: Optimizer, state: Sequence[Any]) -> int:
        """Begin a fit: epochs of it that are done, by a process before this one, whose end is put into model, optimiser
        and whatever else has a state; 0 where nothing was kept, or nothing that can be read."""
        self.fits += 1
        try:
            with safe_open(self.file, "pt") as file:
                said = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if said.pop("sha256") != _sum(tensors, said):
                raise ValueError("checksum differs")
            states = [{**_under(tensors, str(i)), **plain} for i, plain in enumerate(said["plain"])]
            known = optimizer.state_dict()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            # Before anything is put in place: half of another network's state would be trained on.
            if _shapes(states[0]) != _shapes(model.state_dict()):
                raise ValueError("it is of another network")
            for i, plain in said["optimizer"].items():
                held = _under(tensors, f"optimizer/{i}")
                known["state"][int(i)] = {k: _laid(v, parameters[int(i)]) for k, v in held.items()} | plain
            optimizer.load_state_dict(known)
            for part, found in zip([model, *state], states, strict=True):
                part.load_state_dict(found)
        except FileNotFoundError:
            return 0
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            self.say(f"cannot go on from {self.file}: {' '.join(str(error).split())}; training from the start")
            return 0
        self.spent = max(self.spent, said["seconds"])
        return said["epoch"]

    def offer(self, epoch: int, model: nn.Module, optimizer: Optimizer, state: Sequence[Any]) -> None:
        """Keep the state after an epoch of the fit that is going on, if it is time."""
        if time.monotonic() - self.saved < 60 * self.minutes:
            return
        self.saved = time.monotonic()
        self.save(epoch, model, optimizer, state)

    def save(self, epoch: int, model: nn.Module, optimizer: Optimizer, state: Sequence[Any]) -> None:
        """Keep the state; where it cannot be written, say so and go on: the training itself lacks nothing."""
        tensors: dict[str, Tensor] = {}
        plain = [_split(part.state_dict(), str(i), tensors) for i, part in enumerate([model, *state])]
        steps = {i: _split(s, f"optimizer/{i}", tensors) for i, s in optimizer.state_dict()["state"].items()}
        seconds = self.spent + time.monotonic() - self.started
        said = {"epoch": epoch, "seconds": seconds, "plain": plain, "optimizer": steps}
        said = json.loads(json.dumps(said))  # numbers of parameters as they will be read, as text
        try:
            with published(self.file) as aside:
                save_file(tensors, aside, {"training": json.dumps(said | {"sha256": _sum(tensors, said)})})
        except (OSError, SafetensorError) as error:
            self.say(f"no checkpoint: cannot write {self.file}: {error}")


def _sum(tensors: dict[str, Tensor], said: dict[str, Any]) -> str:
    """SHA-256 of all that a file holds: safetensors has none of its own."""
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _split(values: dict[str, Any], under: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The values of a state_dict that are no tensors; those that are go into `tensors`, named `under`/NAME."""
    # Copies: tied weights share memory, which safetensors does not write.
    tensors |= {
        f"{under}/{k}": v.detach().cpu().clone().contiguous() for k, v in values.items() if isinstance(v, Tensor)
    }
    return {k: v for k, v in values.items() if not isinstance(v, Tensor)}


def _shapes(state: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _laid(value: Tensor, parameter: Tensor) -> Tensor:
    """A value of a parameter in its layout: fused optimisers go through both as they lie in memory."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
