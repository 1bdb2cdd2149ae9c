"""The plug-in interface: the words that methods, attacks, tasks and the harness share, with shapes and units.

Who writes a method derives from `Method`, an attack from `Attack` (or `TunedAttack`), a task from `Task`: each a frozen
dataclass, whose fields are the keys of its yaml. docs/extending.md has a recipe of each. When what is called: `fits`;
by the owner `extend`, `keygen`, `embed`, `extract`; by the attacker `skip`, `run`; by the judge `extract`, `evidence`,
`accepts` and `utility` of host, victim and each snapshot; then `trials`. Networks are in eval mode and on the task's
device when they change hands. All randomness comes from what is handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bench import metrics
from bench.errors import SEEDS, ConfigError, among, checked, within
from bench.metrics import Knob

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


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
    untrained network of the published architecture, without what the method adds to it. `host()` opens the public
    network that the victim was made from, for an attack that `knows` it; None where the victim was trained from
    scratch. Of the owner's secret there is `where` for an attack that `knows` layer or key, and `key` for one that
    knows the key: nothing else.
    """

    model: nn.Module
    method: Method
    task: Task
    other: Task | None = None
    fresh: Callable[[int], nn.Module] | None = None
    host: Callable[[], nn.Module] | None = None
    where: tuple[str, ...] | None = None
    key: Key | None = None


@dataclass(frozen=True)
class Snapshot:
    """One point on an attack's axis. The model may be overwritten once the next snapshot is drawn.

    `claim` is the attacker's own key (overwrite, forge). `moved`: the model now serves `victim.other`, on which its
    utility is measured. `continues`: this point was made from the one before, whose cost is part of its own.
    `skipped` says why this point could not be made. `seconds`: what it cost, where the attack keeps the time itself.
    `facts`: fields of the row that the attack measured itself (detect: auc and what goes with it). `reference`: the
    network by which the claimant wants the victim's channels put back.
    """

    knob: str
    strength: float | None
    model: nn.Module
    claim: Key | None = None
    moved: bool = False
    continues: bool = False
    skipped: str = ""
    seconds: float | None = None
    facts: dict[str, float] = field(default_factory=dict)
    reference: nn.Module | None = None


class Fit(Protocol):
    """The training loop bound to a schedule and a seed (bench.train.Fit): what `embed` and `run` are handed. seed: of
    batches, augmentation and dropout. train: the schedule, read-only (batch_size, epochs, lr, ...)."""

    seed: int
    train: Any

    def using(self, **schedule: Any) -> Fit:
        """The same loop with fields of the schedule replaced (lr=, epochs=, ...)."""

    def seeded(self, seed: int) -> Fit:
        """The same loop with other draws."""

    def __call__(self, model: nn.Module, task: Task, **how: Any) -> nn.Module:
        """Train to the end, in place; arguments as `epochs`. Returns the model in eval mode."""

    def epochs(self, model: nn.Module, task: Task, **how: Any) -> Iterator[int]:
        """Train in place on `task.train`, a fresh optimiser each time; yields after every epoch, from 1, in eval mode.

        penalty=: a function of the model whose scalar is added to the loss, in float32; step=: one called after each
        optimiser step, without gradients; loss=: one of (model, batch) in place of the task's. only=: names of modules
        that train; all else stays, statistics too. state=: what else changes in training, each with state_dict and
        load_state_dict, for checkpoints. Other keywords replace the schedule's.
        """


@dataclass(frozen=True)
class Hooks:
    """What embedding adds to any training loop. penalty, step and state: as Fit.epochs takes them; done: called when
    training is over, for what of the key was trained."""

    penalty: Callable[[nn.Module], Tensor] | None = None
    step: Callable[[nn.Module], None] | None = None
    state: tuple[Any, ...] = ()
    done: Callable[[], None] = lambda: None


LATER = {"later": True, "neutral": None}  # as spec.later has it
# The attacker never sees the owner's data, nobody trains or chooses on test, an attack that states no data gets none.
ALLOWED = {
    "owner": ("owner", "validation"),
    "attacker": ("attacker", "validation"),
    "outsider": (),
    "judge": ("owner", "attacker", "validation", "test"),
}
SETTLED = "there are no other classes to move to: attack.transfer=null"


@dataclass(frozen=True)
class Task:
    """What a model does: data splits (owner, attacker, validation, test), loss and utility; methods and attacks see
    nothing else of it. A batch is whatever `batches` yields; `loss`, `distill` and `inputs` take it apart.

    role: who looks, of ALLOWED; it decides which splits may be drawn. `open(data, cache, device, say)` of the yaml's
    dataclass makes a task. Class attributes or properties: kind, its name in conf/task; name, the data set's in tables;
    gives, what its networks give; utility_name; max_damage, the points of utility a success may cost; identity, what a
    stage hash covers: the data by content, splits, all that changes a batch.
    """

    kind: ClassVar[str]
    gives: ClassVar[str]
    name: ClassVar[str]
    utility_name: ClassVar[str]
    max_damage: ClassVar[float]
    identity: ClassVar[dict[str, Any]]

    role: str = field(default="judge", kw_only=True)

    @property
    def train(self) -> str:
        """The split that this role trains on."""
        return "owner" if self.role == "judge" else self.role

    @property
    def asks(self) -> str:
        """The split on whose inputs this role looks at what a network gives."""
        return "test" if self.role == "judge" else "validation"

    def view(self, role: str) -> Task:
        """The same task as a role of ALLOWED sees it. PermissionError for another's: nobody gets back to more."""
        if self.role not in ("judge", role):
            raise PermissionError(f"the {self.role} cannot take the view of the {role}")
        return replace(self, role=role)

    def check(self, split: str) -> None:
        """Raises PermissionError for a split that is not this role's to see: the first line of `tensors`."""
        if split not in ALLOWED[self.role]:
            raise PermissionError(f"the {self.role} may not draw from the {split} split")

    def size(self, split: str) -> int:
        """Examples in a split, which everybody may count."""
        raise NotImplementedError

    def tensors(self, split: str) -> tuple[Any, ...]:
        """What a split's batches are gathered from, on the device. Raises PermissionError (`check`)."""
        raise NotImplementedError

    def batches(self, split: str, batch_size: int, seed: int | None = None) -> Iterator[Any]:
        """A split on the device: with a seed shuffled and augmented, a last batch that is not full left out; without,
        in order and complete. Raises PermissionError (`check`)."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The task's loss on a batch, a scalar."""
        raise NotImplementedError

    def smoothed(self, amount: float) -> Task:
        """The same task, whose loss smooths its labels by an amount in [0, 1)."""
        raise self.refuses("it has no labels to smooth: train.label_smoothing=0")

    def distill(self, model: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
        """The loss of a model against a teacher's outputs, a scalar: no label is read."""
        raise NotImplementedError

    def inputs(self, batch: Any) -> Any:
        """What the model is called with: the first part of a batch, unless it is made otherwise."""
        return batch[0]

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """How far two outputs for the same inputs are apart: KL divergence in nats, mean over the batch."""
        raise NotImplementedError

    def example(self, count: int = 2) -> Tensor:
        """`count` inputs without content: their shape says what the network takes."""
        raise NotImplementedError

    def utility(self, model: nn.Module, split: str = "test") -> float:
        """What a network is worth on a split, in the unit of `utility_name`; more is better, but for those of
        metrics.FALLING. The judge's alone."""
        raise NotImplementedError

    def confidence(
        self, host: nn.Module, victim: nn.Module, utility_host: float, utility_victim: float
    ) -> tuple[float | None, float | None]:
        """What a run on this test split can say: log10 p that whoever does not look at the inputs does as well as the
        host (binomial), and how far the 95% interval of the victim's utility over test examples reaches from it.
        None: not told. The judge's alone; the networks' utilities on the test split come with them."""
        return None, None

    def build(self, model: Any, seed: int) -> nn.Module:
        """A network (of conf/model) on the device, its start fixed by the seed. ConfigError for one of another task."""
        raise NotImplementedError

    def head(self, model: nn.Module) -> str | None:
        """Name of the module whose outputs are the network's; None where no part is exchanged with the classes."""
        return None

    def adopt(self, model: nn.Module, old: Task, seed: int) -> nn.Module:
        """A model of task `old` with a fresh head for this one, in place."""
        raise self.refuses(SETTLED)

    def transfer(self, data: Any) -> Task:
        """This role's task on another data set (a conf/data node), all of whose training data are the attacker's."""
        raise self.refuses(SETTLED)

    def answers(self, model: nn.Module) -> Tensor:
        """What a network gives for the inputs of `asks`, as whoever asks sees it: pictures [N, 3, H, W] in 0..255."""
        raise self.refuses("its networks give no pictures")

    def examples(self) -> dict[str, list[Any]]:
        """For a run's figure some inputs of `asks` and what should come out, by name: pictures [3, H, W] in 0..255 or
        texts. Empty: there is no such figure."""
        return {}

    def shows(self, model: nn.Module) -> tuple[str, list[Any]]:
        """A caption, and what a network makes of the `examples`, in their order and form."""
        raise NotImplementedError

    def undegraded(self) -> Task:
        """The same task with inputs that are what a network should give."""
        raise self.refuses("its networks give no pictures")

    def refuses(self, why: str) -> ConfigError:
        return ConfigError(f"task={self.kind}: {why}")


@dataclass(frozen=True)
class Method:
    """A watermarking method: a frozen dataclass that derives from this and overrides what it needs.

    epochs: of embedding, where they are not train.epochs (or train.finetune's).

    `version` enters the hash of everything embedded: raise it when the same configuration would give other weights.
    `marks` is False for the one that carries no message. `boundary` is the p-value that the method's own paper asks
    for, if it names one. `access` is what extraction reads of a suspect: `weights`; `activations`, weights and what
    they make of the key's own inputs; or `outputs` alone: every network counts then, and of pictures `read` and
    `readings` say what they show (bench.gallery). `signs`: whether bits are signs of what is linear in weights, so that
    all of them inverted tell of the mark as well. `linear`: whether logits are linear in the weights, permutation and
    scale of channels held fixed: who rewrites them then solves once (attacks._rewrite). `tunable`: whether `again`
    depends on its factor. A field that names a file (spec.file()) or a node with a `_target_` is hashed by content.
    """

    version: ClassVar[int] = 1
    marks: ClassVar[bool] = True
    boundary: ClassVar[float | None] = None
    access: ClassVar[str] = "weights"
    signs: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    tunable: ClassVar[bool] = False
    epochs: int | None = field(default=None, kw_only=True, metadata={**LATER, **within(0).metadata})

    def __post_init__(self) -> None:
        checked(self, "method")

    @property
    def harness_only(self) -> str:
        """Why no other training loop can embed it (`hooks`), in words; empty where one can."""
        return "it trains on a task's own batches"

    @property
    def released(self) -> bool:
        """Whether the marked network is handed out; of one that is not, attackers get outputs only."""
        return True

    @property
    def from_scratch(self) -> bool:
        """Whether `embed` starts from an untrained network, not from the host (Uchida et al. 2017, Sec. 3.2)."""
        return False

    @property
    def trains_on(self) -> str:
        """What `embed` trains a trained host on, mark or no mark: `labels`, `outputs` (its own), labels through an
        `adapter` (bench.models.lora), or nothing (""). The
        judge compares with a host that was trained likewise without a mark."""
        return ""

    def again(self, factor: float) -> Method:
        """The method as an attacker embeds with it: into a trained network, its strength (lambda) times `factor`."""
        return self

    def extend(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        """`model` with whatever the method adds to its architecture (bench.models.branches), in place and untrained."""
        return model

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key | None:
        """A fresh message and secret for `host`, from `rng` alone; `task` is that of whoever draws it, for a key that
        holds inputs. None: the method carries no message."""
        raise NotImplementedError

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """The marked model. `host` may be trained in place; data come from `task.batches(task.train)`."""
        raise NotImplementedError

    def hooks(self, host: nn.Module, key: Key, seed: int) -> Hooks:
        """What `embed` adds to the training of `host`, in which whatever is there before training is set at once."""
        raise NotImplementedError

    def extract(self, model: nn.Module, key: Key, task: Task) -> Tensor:
        """Soft bits [n] in [0, 1], 0.5 = undecided. No gradients, no randomness. Where there are `logits`: of those."""
        if (found := self.logits(model, key)) is None:
            raise NotImplementedError
        return found.detach().sigmoid()

    def logits(self, model: nn.Module, key: Key) -> Tensor | None:
        """Differentiable extraction [n] before the threshold at 0, or None where there is no such thing."""
        return None

    def channel(self, model: nn.Module, key: Key) -> Tensor | None:
        """What `extract` decodes, differentiable [c], where a code lies between it and the bits: else the logits."""
        return self.logits(model, key)

    def coded(self, key: Key) -> Tensor:
        """The signs +-1 [c] that `channel` has where the key reads its message."""
        return key.message * 2.0 - 1

    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor] | None:
        """Of each weight in key.where the part that no bit is computed from, same shape: by it and all other weights
        a suspect's channels are put back in order (bench.models.align). None: all that key.where names is read."""
        return None

    def accepts(self, key: Key) -> bool:
        """Every check that verification prescribes apart from matching bits (a commitment, say)."""
        return True

    def evidence(self, soft: Tensor, key: Key) -> tuple[float, float]:
        """(BER, log10 p) of soft bits [n]: the binomial null of bits that match by `chance`, unless the method states
        another; in both tails where bits are `signs`."""
        error = metrics.ber(soft, key.message)
        return error, metrics.log10_p(error, key.n_bits, 2 if self.signs else 1, self.chance(key))

    def chance(self, key: Key) -> float:
        """The probability that a bit matches where nothing was embedded: one half, for a random message."""
        return 0.5

    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """`count` keys drawn for `other` and the soft bits [n] each reads from `model`. To be overridden where one
        takes minutes (same bits, faster), or where part of the `key` is trained: drawn ones would read nothing."""
        for _ in range(count):
            guess = self.keygen(other, rng, task)
            yield guess, self.extract(model, guess, task)

    def forgeries(
        self, model: nn.Module, rng: np.random.Generator, task: Task, fit: Fit, tries: list[int]
    ) -> Iterator[tuple[str, int, Key]]:
        """(knob, strength, key) of claims on a network as it is that only the method's arithmetic makes cheap: the best
        of the first t keys ground against a hash for each t of `tries`, a secret trained by `fit` on what it gives."""
        return iter(())


@dataclass(frozen=True)
class Attack:
    """An attack's threat model; each attack is a frozen dataclass that derives from this.

    goal: `removal`, `overwrite`, `forge` or `secrecy`: which rule of the protocol judges it.
    seed: the attacker's own randomness, independent of the owner's even where the number is the same.
    knows: what it is given: weights, outputs, labels (the classes that are named, alone), method, layer, key, and the
    public host. data: `attacker`, its own split of the training data, or `none`. Its budget are its own options
    (epochs, tries). A field `transfer`, where an attack has one, is a conf/data node: that data set is handed over as
    `victim.other`. Files (spec.file()) and nodes with a `_target_`, also within a dictionary, are hashed by content.
    """

    version: ClassVar[int] = 1
    # What the attack cannot do without: a configuration that claims to know less is refused.
    needs: ClassVar[tuple[str, ...]] = ("weights",)
    needs_data: ClassVar[bool] = False
    # What its knobs are, by name or by what comes before a comma or a slash: for tables and axes. Run files hold it.
    knobs: ClassVar[dict[str, Knob]] = {}
    goal: str = among("removal", "overwrite", "forge", "secrecy")
    seed: int = within(*SEEDS)
    knows: list[str] = among("weights", "outputs", "labels", "method", "layer", "key", "host")
    data: str = among("none", "attacker")

    def __post_init__(self) -> None:
        checked(self, "attack")
        if short := [item for item in self.needs if item not in self.knows]:
            raise ConfigError(f"attack.knows must list {short[0]}: this attack uses it")
        if self.needs_data and self.data == "none":
            raise ConfigError("this attack trains: it needs attack.data=attacker")

    @property
    def twin(self) -> Attack | None:
        """What the judge makes on the unmarked host as well, where a mark is read from outputs: the control."""
        return None

    def fits(self, task: Task) -> None:
        """Raises ConfigError for options that cannot be on this task, before anything is trained."""

    def skip(self, victim: Victim) -> str | None:
        """Why this attack cannot be made on this victim, or None."""
        return None

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        """One snapshot per strength, made on a copy: the victim stays bit-identical."""
        raise NotImplementedError


@dataclass(frozen=True)
class TunedAttack(Attack):
    """An attack that trains: optimizer (sgd, adamw), its rate and weight decay."""

    optimizer: str = among("sgd", "adamw")
    lr: float = within(0, ends="(]")
    weight_decay: float = within(0)

    @property
    def tuning(self) -> dict[str, Any]:
        """Its own fields of a schedule."""
        return {"optimizer": self.optimizer, "lr": self.lr, "weight_decay": self.weight_decay}

    def schedule(self, epochs: int) -> dict[str, Any]:
        """`tuning` at a constant rate for some epochs: keywords of a Fit."""
        return {**self.tuning, "epochs": epochs, "schedule": "constant", "warmup": 0.0}


@dataclass
class Row:
    """One result: fields, order and meaning are the protocol's. None where a value does not apply. ber in [0, 1];
    log10_p <= 0; utility in the task's unit (top-1 accuracy: percent); seconds and peak_mb: what this point cost the
    attacker. Later than the first run files, in which they are null: utility_validation, by which an attacker chooses
    among strengths; what is read after the judge put channels back (`align` says what it did); whether the owner's key
    and copy were committed before any dispute; tests, among which alpha is shared; auc in [0, 1], with the ends of its
    95% interval: how well marked networks are told from unmarked ones; layer_named: the share of marks whose layer is
    named, layer_chance: that of a layer named at random; chance, claim_chance: the probability that a bit of the
    owner's key, of the claim's, matches where nothing was embedded, if it is not one half; threads: of the CPU that
    made this network (the sums of one training differ with their number, which no hash covers); tested: examples in the
    test split; utility_half, log10_p_host: what they can say (Task.confidence); marked: whether the victim verifies."""

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
    created_at: str = ""
    utility_validation: float | None = None
    ber_aligned: float | None = None
    log10_p_aligned: float | None = None
    align: str | None = None
    committed: bool | None = None
    tests: int | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    layer_named: float | None = None
    layer_chance: float | None = None
    chance: float | None = None
    claim_chance: float | None = None
    threads: int | None = None
    tested: int | None = None
    utility_half: float | None = None
    log10_p_host: float | None = None
    marked: bool | None = None


ROW_FIELDS = tuple(f.name for f in fields(Row))
ROW_LATER = ROW_FIELDS[ROW_FIELDS.index("created_at") + 1 :]  # not in the first run files
