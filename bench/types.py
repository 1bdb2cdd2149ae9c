"""The words every room of the harness shares: keys, victims, snapshots, rows, and the protocols.

Nothing here imports torch at run time, so that the command line can name these types cheaply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from bench.train import Fit


class UserError(Exception):
    """Something the user can mend: shown as one line, never as a traceback.

    `code` is the exit status: 2 for a configuration that cannot be, 1 for a run that went wrong.
    """

    def __init__(self, message: str, code: int = 1):
        super().__init__(" ".join(str(message).split()))
        self.code = code


class ConfigError(UserError):
    """A configuration that cannot be: unknown name, wrong type, a layer that is too small."""

    def __init__(self, message: str):
        super().__init__(message, code=2)


@dataclass(frozen=True)
class Key:
    """What the owner keeps: message [n] of bool, the method's secret tensors, the marked weights' names."""

    message: Tensor
    secret: dict[str, Tensor]
    where: tuple[str, ...]

    @property
    def n_bits(self) -> int:
        return self.message.numel()


@dataclass(frozen=True)
class Victim:
    """The stolen model as its attacker sees it.

    The method and its parameters are public (Kerckhoffs), the key is not; `task` is the attacker's view of the data,
    which refuses the owner's, and `other` another data set to move to, if the attack names one. `fresh(seed)` gives an
    untrained network of the published architecture, without what the method adds to it. `where` is filled only for an
    attack whose `knows` lists `layer` or `key`, and `key` only for one that lists `key`: nothing else of the owner's
    secret can be reached from here.
    """

    model: nn.Module
    method: Method
    task: Task
    other: Task | None = None
    fresh: Callable[[int], nn.Module] | None = None
    where: tuple[str, ...] | None = None
    key: Key | None = None


@dataclass(frozen=True)
class Snapshot:
    """One point on an attack's axis. The model may be overwritten once the next snapshot is drawn.

    `claim` is the attacker's own key (overwrite, forge). `moved`: the model now serves `victim.other`, on which its
    utility is measured. `continues`: this point was made from the one before, whose cost is part of its own.
    `skipped` says why this point could not be made.
    """

    knob: str
    strength: float | None
    model: nn.Module
    claim: Key | None = None
    moved: bool = False
    continues: bool = False
    skipped: str = ""


class Task(Protocol):
    """Data splits, loss and utility of what the model does; methods and attacks see nothing else of it."""

    name: str
    gives: str  # what its networks give: classes or pictures
    utility_name: str
    train: str
    identity: dict[str, Any]

    def size(self, split: str) -> int: ...
    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[Any]: ...
    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...
    def distill(self, model: nn.Module, teacher: nn.Module, batch: Any) -> Tensor: ...
    def inputs(self, batch: Any) -> Tensor: ...
    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor: ...
    def example(self, count: int = 2) -> Tensor: ...
    def utility(self, model: nn.Module, split: str = "test") -> float: ...
    def view(self, role: str) -> Task: ...
    def build(self, model: Any, seed: int) -> nn.Module: ...
    def head(self, model: nn.Module) -> str: ...
    def new_head(self, model: nn.Module, seed: int) -> nn.Module: ...
    def transfer(self, data: Any) -> Task: ...
    def adopt(self, model: nn.Module, old: Task, seed: int) -> nn.Module: ...


class Method:
    """A watermarking method: a frozen dataclass that derives from this and overrides what it needs.

    A field `situation` says from where `embed` starts (Uchida et al., Sec. 3.2): with `scratch` it is handed a
    freshly initialised model, with anything else, and without such a field, the trained host. `version` enters the
    hash of everything embedded: raise it when the same configuration would give other weights. `marks` is False for
    the one that carries no message. `boundary` is the p-value that the method's own paper asks for, if it names one.
    `access` is what extraction reads of a suspect: `weights`, or `outputs` alone, and then every network counts. Of a
    victim that is not `released` attackers get outputs only.
    """

    version: ClassVar[int] = 1
    marks: ClassVar[bool] = True
    boundary: ClassVar[float | None] = None
    access: ClassVar[str] = "weights"

    @property
    def released(self) -> bool:
        return True

    def extend(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        """`model` with whatever the method adds to its architecture (bench.branches), in place and untrained."""
        return model

    def keygen(self, host: nn.Module, rng: np.random.Generator) -> Key | None:
        """A fresh message and secret for `host`, from `rng` alone. None: the method carries no message."""
        raise NotImplementedError

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """The marked model. `host` may be trained in place; data come from `task.batches(task.train)`."""
        raise NotImplementedError

    def extract(self, model: nn.Module, key: Key, task: Task) -> Tensor:
        """Soft bits [n] in [0, 1], 0.5 = undecided. No gradients, no randomness."""
        raise NotImplementedError

    def logits(self, model: nn.Module, key: Key) -> Tensor | None:
        """Differentiable extraction [n] before the threshold at 0, or None where there is no such thing."""
        return None

    def accepts(self, key: Key) -> bool:
        """Every check that verification prescribes apart from matching bits (a commitment, say)."""
        return True

    def evidence(self, soft: Tensor, key: Key) -> tuple[float, float]:
        """(BER, log10 p) of soft bits [n]: the binomial null of a random message, unless the method states another."""
        from bench import metrics

        error = metrics.ber(soft, key.message)
        return error, metrics.log10_p(error, key.n_bits)

    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """`count` keys drawn for the network `other` and the soft bits [n] that each reads from `model`.

        To be overridden where one key at a time takes minutes (same keys and bits, faster), and where part of the
        owner's `key` is trained, so that a drawn one would read nothing from anything.
        """
        for _ in range(count):
            guess = self.keygen(other, rng)
            yield guess, self.extract(model, guess, task)


@dataclass(frozen=True)
class Attack:
    """An attack's threat model; each attack is a frozen dataclass that derives from this.

    goal: `removal`, `overwrite` or `forge`: which rule of the protocol judges it.
    seed: the attacker's own randomness, independent of the owner's even where the number is the same.
    knows: what it is given: weights, outputs, method, layer, key.
    data: `attacker`, its own split of the training data, or `none`. Its budget are its own options (epochs, tries).
    A field `transfer`, where an attack has one, is a conf/data node: that data set is handed over as `victim.other`.
    """

    version: ClassVar[int] = 1
    # What the attack cannot do without: a configuration that claims to know less is refused.
    needs: ClassVar[tuple[str, ...]] = ("weights",)
    needs_data: ClassVar[bool] = False
    goal: str
    seed: int
    knows: list[str]
    data: str

    def __post_init__(self) -> None:
        from bench.spec import choice

        choice("attack.goal", self.goal, ("removal", "overwrite", "forge"))
        for item in self.knows:
            choice("attack.knows", item, ("weights", "outputs", "method", "layer", "key"))
        choice("attack.data", self.data, ("none", "attacker"))
        if short := [item for item in self.needs if item not in self.knows]:
            raise ConfigError(f"attack.knows must list {short[0]}: this attack uses it")
        if self.needs_data and self.data == "none":
            raise ConfigError("this attack trains: it needs attack.data=attacker")

    @property
    def twin(self) -> Attack | None:
        """What the judge makes on the unmarked host as well, where a mark is read from outputs: the control that says
        what such a detector finds in a network that learned from no marked one."""
        return None

    def fits(self, task: Task) -> None:
        """Raises ConfigError for options that cannot be on this task, before anything is trained."""

    def skip(self, victim: Victim) -> str | None:
        """Why this attack cannot be made on this victim, or None."""
        return None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        """One snapshot per strength, made on a copy: the victim stays bit-identical."""
        raise NotImplementedError


@dataclass
class Row:
    """One result: fields, order and meaning are the protocol's. None where a value does not apply.

    ber in [0, 1]; log10_p <= 0; utility in the task's unit (top-1 accuracy: percent); seconds and peak_mb
    are what this point cost the attacker.
    """

    run_id: str
    method: str
    attack: str
    model: str
    data: str
    seed: int
    knob: str
    strength: float | None = None
    n_bits: int | None = None
    ber: float | None = None
    log10_p: float | None = None
    detected: bool | None = None
    claim_ber: float | None = None
    claim_log10_p: float | None = None
    claim_detected: bool | None = None
    utility_name: str | None = None
    utility: float | None = None
    utility_victim: float | None = None
    utility_host: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    device: str | None = None
    status: str = "ok"
    error: str | None = None
    config_hash: str = ""
    commit: str | None = None
    created_at: str = field(default="")


ROW_FIELDS = tuple(f.name for f in fields(Row))
