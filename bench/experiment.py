"""A configuration with every node built and checked, and the hashes that name what follows from it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from bench import models, spec
from bench.cache import Cache, sha256
from bench.loggers import Log, Logger
from bench.terminal import Progress, unseen
from bench.train import Train
from bench.types import Attack, ConfigError, Method, Row, Task

if TYPE_CHECKING:
    from bench.gallery import Gallery

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Verify:
    """The judge's numbers: the p-value at which a mark is detected; utility points an attack may cost; how many random
    keys are tried on the victim, the control that measures false positives."""

    alpha: float
    max_damage: float
    keys: int

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.max_damage < 0 or self.keys < 0:
            raise ConfigError("verify: alpha must be in (0, 1), max_damage and keys at least 0")


@dataclass(frozen=True)
class Options:
    """The options that belong to no group: see conf/config.yaml."""

    seed: int
    device: str
    threads: int | None
    results_dir: str
    force: bool
    debug: bool


def silent(line: str) -> None:
    """The `say` of a caller that wants no progress lines."""


@dataclass(frozen=True)
class Experiment:
    """A configuration with every node built and checked: what a run is a function of.

    `other` is the data set that the attack moves to, if it names one. `say`, `progress` and `log` hear how it goes;
    `gallery` collects what a mark in pictures looks like.
    """

    cfg: DictConfig
    options: Options
    method: Method
    attack: Attack
    model: models.Model
    data: Any
    train: Train
    verify: Verify
    cache: Cache
    logger: Logger
    task: Task
    other: Task | None
    device: torch.device
    say: Callable[[str], None]
    progress: Progress = unseen
    log: Log = field(default_factory=Log)
    gallery: Gallery | None = None

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def results(self) -> Path:
        return Path(self.options.results_dir)

    @cached_property
    def host_identity(self) -> dict[str, Any]:
        """All that determines the host's weights."""
        return {
            **self.task.identity,
            "model": self.model.identity(),
            "train": spec.canonical(self.train),
            "seed": self.seed,
        }

    @cached_property
    def mark_identity(self) -> dict[str, Any]:
        """All that determines the marked weights and the key."""
        method = {
            "name": spec.kind(self.method),
            "version": self.method.version,
            **spec.canonical(self.method),
        }
        if method.get("surrogate"):
            method["surrogate"] = spec.build(method["surrogate"], "method.surrogate").identity()
        if method.get("logo"):
            method["logo"] = sha256(Path(method["logo"]))
        return {**self.host_identity, "method": method}

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Every tensor of the marked network by name."""
        model = self.method.extend(self.task.build(self.model, 0), self.task, 0)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    def hashes(self) -> tuple[str, str]:
        """(run_id, config_hash): with the seeds and without them."""
        attack = {
            "name": spec.kind(self.attack),
            "version": self.attack.version,
            **spec.canonical(self.attack),
        }
        if self.other is not None:
            attack["transfer"] = self.other.identity  # by content, not by place
        if attack.get("student"):
            attack["student"] = spec.build(attack["student"], "attack.student").identity()
        if attack.get("vgg"):
            attack["vgg"] = sha256(Path(attack["vgg"]))
        if attack.get("students"):
            attack["students"] = {
                name: spec.build(node, f"attack.students.{name}").identity()
                for name, node in attack["students"].items()
            }
        everything = {**self.mark_identity, "attack": attack, "verify": spec.canonical(self.verify)}
        run_id = spec.digest(everything)
        everything.pop("seed")
        # An attacker's seed that follows the replicate's is no part of the cell; one that was chosen is.
        attack["seed"] = "as seed" if self.attack.seed == self.seed else self.attack.seed
        return run_id, spec.digest(everything)

    def row(self, knob: str, **values: Any) -> Row:
        run_id, config_hash = self.hashes()
        facts = {
            "run_id": run_id,
            "method": spec.kind(self.method),
            "attack": spec.kind(self.attack),
            "model": self.model.title,
            "data": self.data.name,
            "seed": self.seed,
            "knob": knob,
            "device": device_name(self.device),
            "config_hash": config_hash,
            "commit": commit(),
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return Row(**{**facts, **values})


def prepare(cfg: DictConfig, say: Callable[[str], None] = silent, progress: Progress = unseen) -> Experiment:
    """Build and check every node before anything costs time. Raises ConfigError or UserError."""
    names = [f.name for f in fields(Options)]
    options = spec.build({"_target_": "bench.experiment.Options", **{name: cfg.get(name) for name in names}}, "")
    groups = ("method", "attack", "model", "data", "train", "verify", "cache", "logger")
    node = {name: spec.build(cfg.get(name), name) for name in groups}
    task = spec.build(cfg.task, "task")
    device = pick_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    # cuBLAS reads this when the first handle is made; without it matrix products refuse to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms(True, warn_only=True), which would import torch's compiler first: a second or more.
    torch.set_deterministic_debug_mode("warn")
    # It would also fill every new tensor with nan, lest anybody reads what was never written: a fifth of the time of a
    # small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # what it would tell the compiler
    node["train"] = node["train"].resolved(device)
    opened, other = task.open(node["data"], node["cache"], device, say), None
    if (transfer := getattr(node["attack"], "transfer", None)) is not None:
        if not isinstance(transfer, dict):
            raise ConfigError(f"attack.transfer takes a data set: data@attack.transfer={transfer}")
        other = opened.transfer(transfer)
    node["attack"].fits(opened)
    heard = {"say": say, "progress": progress}
    return Experiment(cfg=cfg, options=options, task=opened, other=other, device=device, **heard, **node)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError for a device that this machine lacks."""
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


@lru_cache
def commit() -> str | None:
    """The harness's own commit, with `+` for uncommitted changes; None outside a checkout."""
    try:
        head = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(head, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
