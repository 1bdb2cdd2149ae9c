"""A configuration with every node built and checked: hashes that name what follows from it, seeds, names."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from bench import machine, metrics, precision, spec
from bench.errors import SEEDS, ConfigError, among, checked, within
from bench.loggers import Log, Logger
from bench.models.base import Network
from bench.progress import Progress, Say, silent, unseen
from bench.store import expected
from bench.store.cache import Cache
from bench.store.runfile import run_path
from bench.train import Train
from bench.types import Attack, Method, Row, Task

JUDGE = 2  # 2: both tails, alignment, strengths chosen on validation, fidelity against a host trained as long


@dataclass(frozen=True)
class Verify:
    """The judge's numbers: the p-value at which a mark is detected; utility points an attack may cost (None: the task's
    own number); how many random keys are tried on the victim, the control that measures false positives; the p-value
    at which an attacker's claim verifies (None: the method's boundary, or metrics.CLAIM; above alpha it is alpha).
    align: `committed`, a suspect that does not verify has its channels put back by the copy that the owner committed
    together with the key (bench.models.align), and is read again; `none`."""

    alpha: float = within(0, 0.05, ends="(]")
    max_damage: float | None = within(0)
    keys: int = within(0, 10**6)
    claim: float | None = spec.later(None, check=within(0, 1, ends="()"))
    align: str = spec.later("none", check=among("none", "committed"))

    def __post_init__(self) -> None:
        checked(self, "verify")


@dataclass(frozen=True)
class Host:
    """How the unmarked network is made. epochs: where they are not train.epochs; 0: it is taken as it is, from
    model.checkpoint or what its package has."""

    epochs: int | None = within(0)

    def __post_init__(self) -> None:
        checked(self, "host")


@dataclass(frozen=True)
class Options:
    """The options that belong to no group: see conf/config.yaml."""

    seed: int = within(*SEEDS)
    device: str
    threads: int | None = within(1, 4 * (os.cpu_count() or 1))
    results_dir: str
    force: bool
    debug: bool

    def __post_init__(self) -> None:
        checked(self, "")
        if not self.results_dir.strip():
            raise ConfigError("results_dir is empty: name a folder, results for example")


@dataclass(frozen=True)
class Experiment:
    """A configuration with every node built and checked: what a run is a function of.

    `other` is the data set that the attack moves to, if it names one. `expected`: what papers report of it
    (bench.store.expected), which no hash covers. `words`: what composed it, after `python -m
    bench`, if a command line did. `say`, `progress` and `log` hear how it goes.
    """

    cfg: DictConfig
    options: Options
    method: Method
    attack: Attack
    model: Network
    data: Any
    train: Train
    verify: Verify
    cache: Cache
    logger: Logger
    task: Task
    other: Task | None
    device: torch.device
    say: Say
    progress: Progress = unseen
    words: list[str] | None = None
    expected: list[dict[str, Any]] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    host: Host = field(default_factory=lambda: Host(None))

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def results(self) -> Path:
        return Path(self.options.results_dir).expanduser()

    @property
    def bar(self) -> float:
        """The p-value at which an attacker's claim verifies."""
        return min(self.verify.alpha, self.verify.claim or usual(self.method))

    @property
    def method_name(self) -> str:
        return spec.kind(self.method)

    @property
    def attack_name(self) -> str:
        return spec.kind(self.attack)

    def seeded(self, *roles: object) -> int:
        """The seed of one role in this replicate."""
        return spec.derive(self.seed, *roles)

    def rng(self, *roles: object) -> np.random.Generator:
        return np.random.default_rng(self.seeded(*roles))

    @cached_property
    def host_identity(self) -> dict[str, Any]:
        """All that determines the host's weights."""
        return {
            **self.task.identity,
            "model": self.model.identity(),
            "train": spec.canonical(self.host_train),
            "seed": self.seed,
        }

    @property
    def host_train(self) -> Train:
        """The host's schedule."""
        return self.train if self.host.epochs is None else replace(self.train, epochs=self.host.epochs)

    @property
    def mark_train(self) -> Train:
        """The schedule that embeds."""
        train = self.train if self.method.from_scratch else self.train.tuned()
        return train if self._embeds is None else replace(train, epochs=self._embeds)

    @property
    def _embeds(self) -> int | None:
        """Epochs of embedding where they are not the schedule's; a method's own stages are its own."""
        field_ = next(f for f in fields(self.method) if f.name == "epochs")
        return self.method.epochs if field_.kw_only else None

    @property
    def _apart(self) -> dict[str, Any]:
        """Of a host that was not trained as long as the schedule says, what else follows from it."""
        same = self.host.epochs is None or self.host.epochs == self.train.epochs
        return {} if same else {"host_epochs": self.host.epochs}

    @cached_property
    def mark_identity(self) -> dict[str, Any]:
        """All that determines the marked weights and the key."""
        method = spec.identity(self.method, "method")
        named = {"name": self.method_name, "version": self.method.version, **method}
        own = {**self.host_identity, "train": spec.canonical(self.train)}
        return {**own, **self._tuned, **({} if self.method.from_scratch else self._apart), "method": named}

    @cached_property
    def baseline_identity(self) -> dict[str, Any]:
        """All that determines the unmarked network that was trained as long as the marked one."""
        trains = self.method.trains_on
        if not trains:
            return self.host_identity
        own = {**self.host_identity, "train": spec.canonical(self.train), **self._tuned, **self._apart, "on": trains}
        return own if self._embeds is None else {**own, "epochs": self._embeds}

    @property
    def _tuned(self) -> dict[str, Any]:
        return {} if self.method.from_scratch or not self.train.finetune else {"finetune": self.train.finetune}

    @property
    def readings(self) -> int:
        """In how many ways a suspect may verify: by position and, where the judge aligns, after that."""
        aligns = self.verify.align == "committed" and self.method.marks and self.method.access != "outputs"
        return 2 if aligns else 1

    @property
    def tests(self) -> int:
        """Among how many tests alpha is shared: readings, and for signs of weights both tails."""
        return self.readings * (2 if self.method.signs else 1)

    @cached_property
    def hashes(self) -> tuple[str, str]:
        """(run_id, config_hash): with the seeds and without them."""
        other = {} if self.other is None else {"transfer": self.other.identity}  # by content, not by place
        attack = spec.identity(self.attack, "attack", **other)
        attack = {"name": self.attack_name, "version": self.attack.version, **attack}
        judge = {"judge": JUDGE, **spec.canonical(self.verify)}
        everything = {**self.mark_identity, **self._apart, "attack": attack, "verify": judge}
        run_id = spec.digest(everything)
        everything.pop("seed")
        # An attacker's seed that follows the replicate's is no part of the cell; one that was chosen is.
        attack["seed"] = "as seed" if self.attack.seed == self.seed else self.attack.seed
        return run_id, spec.digest(everything)

    @property
    def run_id(self) -> str:
        return self.hashes[0]

    @property
    def path(self) -> Path:
        """Of the run's file."""
        return run_path(self.results, self.method_name, self.attack_name, self.run_id)

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Every tensor of the marked network by name."""
        model = self.method.extend(self.task.build(self.model, 0), self.task, 0)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    def row(self, knob: str, **values: Any) -> Row:
        run_id, config_hash = self.hashes
        facts = {
            "run_id": run_id,
            "method": self.method_name,
            "attack": self.attack_name,
            "model": self.model.title,
            "data": self.data.name,
            "seed": self.seed,
            "knob": knob,
            "device": machine.device_name(self.device),
            "config_hash": config_hash,
            "commit": machine.commit(),
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "threads": machine.threads(),
        }
        return Row(**{**facts, **values})


def usual(method: Method) -> float:
    """The p-value at which claims verify where nobody chooses another: one for honest keys is none for who grinds."""
    return metrics.CLAIM if method.boundary is None else method.boundary


def prepare(
    cfg: DictConfig, say: Say = silent, progress: Progress = unseen, words: list[str] | None = None
) -> Experiment:
    """Build and check every node before anything costs time; `words` composed them. Raises ConfigError or UserError.

    Writes into `cfg` what follows from the choices, for whoever reads a run file: verify.max_damage and verify.claim
    where they are the task's or the method's own, and the threat model of an attack that makes it of others'.
    """
    names = [f.name for f in fields(Options)]
    options = spec.build({"_target_": "bench.experiment.Options", **{name: cfg.get(name) for name in names}}, "")
    groups = ("method", "attack", "model", "data", "train", "verify", "cache", "logger")
    node = {name: spec.build(cfg.get(name), name) for name in groups}
    if cfg.get("host"):  # a configuration of before there was such a thing has none
        node["host"] = spec.build(cfg.host, "host")
    published = expected.of(cfg, spec.kind(node["method"]), spec.kind(node["attack"]))
    task = spec.build(cfg.task, "task")
    if note := node["model"].note():
        say(note)
    device = machine.pick_device(options.device)
    machine.deterministic(options.threads)
    opened, other = task.open(node["data"], node["cache"], device, say), None
    node["train"] = precision.resolved(node["train"], node["model"], opened, node["cache"], device, say)
    if node["verify"].max_damage is None:
        node["verify"] = replace(node["verify"], max_damage=opened.max_damage)
        OmegaConf.update(cfg, "verify.max_damage", opened.max_damage)
    if node["verify"].claim in (None, usual(node["method"])):
        node["verify"] = replace(node["verify"], claim=None)  # the same, said or not: it hashes alike
        OmegaConf.update(cfg, "verify.claim", usual(node["method"]))
    if (transfer := getattr(node["attack"], "transfer", None)) is not None:
        if not isinstance(transfer, dict):
            raise ConfigError(f"attack.transfer takes a data set: data@attack.transfer={transfer}")
        other = opened.transfer(transfer)
    node["attack"].fits(opened)
    if node["attack"].data == "attacker" and opened.gives == "classes" and opened.size("attacker") < 2:
        raise ConfigError("data: the attacker split has 1 image, on which nothing can be trained; change data.*")
    for name in ("knows", "data"):
        OmegaConf.update(cfg, f"attack.{name}", getattr(node["attack"], name))
    given = {"cfg": cfg, "words": words, "expected": published, "say": say, "progress": progress}
    return Experiment(options=options, task=opened, other=other, device=device, **given, **node)
