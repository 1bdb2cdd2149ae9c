"""What every method and every attack must keep, whatever it does: each a function that raises Broken, or says what was
seen. tests/contract asks the same of those in the repository.

x: the experiment; model, key: the victim and its owner's key.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bench import controls, judge, metrics, run, stages, threat
from bench.experiment import Experiment
from bench.progress import Progress, unseen
from bench.train import Fit
from bench.types import ALLOWED, Key, Row, Victim

COSTS = ("seconds", "peak_mb", "created_at")


class Broken(AssertionError):
    """A property that does not hold, in words."""


def require(holds: Any, why: str) -> None:
    if not holds:
        raise Broken(why)


def facts(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows without what differs from run to run."""
    return [{k: v for k, v in asdict(row).items() if k not in COSTS} for row in rows]


# Of a method


def every_bit_is_embedded(x: Experiment, model: nn.Module, key: Key) -> str:
    """The owner reads the message, every check passes, and the stage says so."""
    error = metrics.ber(x.method.extract(model, key, x.task), key.message)
    wrong = round(error * key.n_bits, 1)
    require(error == 0, f"{wrong:g} of {key.n_bits} bits are wrong: more train.epochs, or a stronger mark")
    require(x.method.accepts(key), "accepts() refuses the owner's own key")
    require(stages.mark(x)["ber"] == 0, "the embedded network reads otherwise once it was saved and opened again")
    return f"{key.n_bits} bits"


def the_mark_costs_little(x: Experiment, model: nn.Module, key: Key, most: float | None = None) -> str:
    """Utility moves by at most `most` points (None: what a success may cost)."""
    most = x.verify.max_damage if most is None else most
    host, marked = stages.baseline(x)["utility"], stages.mark(x)["utility"]
    cost = metrics.lost(host, marked, x.task.utility_name)
    require(
        abs(cost) <= most, f"{x.task.utility_name} {host:.4g} unmarked, {marked:.4g} marked: at most {most:g} apart"
    )
    return f"{cost:+.3g}"


def keys_are_drawn_from_rng_alone(x: Experiment, model: nn.Module, key: Key) -> str:
    """The same rng draws the same key; another one another message or secret."""
    net, task = stages.skeleton(x), x.task.view("owner")
    one, same, other = (x.method.keygen(net, np.random.default_rng(seed), task) for seed in (5, 5, 6))
    require(_equal(one, same), "keygen drew two keys from one seed: it draws from something beside rng")
    require(not _equal(one, other), "keygen drew the same key from two seeds: it does not draw from rng")
    require(one.message.dtype == torch.bool and one.message.dim() == 1, "message is no vector of bool")
    lost = sorted({*key.where} - net.state_dict().keys())
    require(not lost, f"where names {lost[:1]}, which is no weight of the network")
    return f"message and {len(one.secret)} secret tensor{'s' * (len(one.secret) != 1)}"


def extraction_repeats_and_leaves_the_suspect(x: Experiment, model: nn.Module, key: Key) -> str:
    """Soft bits [n] in [0, 1], the same again, in channels_last too; the suspect stays bit-identical."""
    before = copy.deepcopy(model.state_dict())
    first, again = (x.method.extract(model, key, x.task).detach().cpu() for _ in range(2))
    require(first.shape == key.message.shape, f"soft bits {tuple(first.shape)}, message {tuple(key.message.shape)}")
    require(bool(((first >= 0) & (first <= 1)).all()), "soft bits lie outside [0, 1]")
    require(torch.equal(first, again), "two extractions of one network differ")
    require(_same(before, model.state_dict()), "extract changes the suspect")
    require(not model.training, "extract leaves the suspect in training mode")
    if x.method.access == "weights" and any(p.dim() == 4 for p in model.parameters()):
        turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
        close = torch.allclose(x.method.extract(turned, key, x.task).detach().cpu(), first, atol=1e-4)
        require(close, "a network in channels_last reads otherwise: a weight's storage is not its order")
    return f"{len(first)} soft bits"


def hosts_are_not_detected(x: Experiment, model: nn.Module, key: Key) -> str:
    """The unmarked network under the owner's key."""
    host = stages.load_weights(stages.skeleton(x), stages.baseline(x).path)
    error, log10_p, found = judge.judged(x, host, key)
    require(not found, f"the unmarked network verifies: BER {error:.3f}, log10 p {log10_p:.1f}")
    require(log10_p > -6, f"BER {error:.3f} of the unmarked network is too good for chance: log10 p {log10_p:.1f}")
    return f"BER {error:.3f}, log10 p {log10_p:.1f}"


def random_keys_match_by_chance(x: Experiment, model: nn.Module, key: Key) -> str:
    """Their mean within 5 standard errors of chance, and none detected. Of a mark in classes a bit is a class drawn
    uniformly, independently of what the network names: one of C is right, and the chance by which evidence is judged
    no less. Where a method states a chance of its own, which may be on the safe side, they match no better."""
    found = controls.random_keys(x)
    require(found, "no random keys were tried: verify.keys")
    right, own = 1 / x.task.signature.num_classes if _of_classes(x) else 0.5, x.method.chance(key)
    stated = not _of_classes(x) and own != 0.5
    right = own if stated else right
    count, mean = found["random_keys"], found["mean_ber"]
    band = 5 * math.sqrt(right * (1 - right) / (count * key.n_bits))
    require(count == x.verify.keys, f"trials gave {count} keys of {x.verify.keys}")
    near = mean >= 1 - right - band if stated else abs(mean - (1 - right)) <= band
    require(near, f"mean BER {mean:.4f} of {count:,} keys, by chance {1 - right:.4f} ± {band:.4f}")
    require(own >= right, f"chance() says {own:.3f}, it is {right:.3f}")
    require(found["false_positives"] == 0, f"{found['false_positives']} of {count:,} random keys verify")
    lowest = found["least_log10_p"]
    best = f"the best of {count:,} random keys has log10 p {lowest:.1f}"
    require(lowest > -9, f"{best}: about {-math.log10(count):.0f} is due")
    require(stated or count < 1000 or lowest < -1, f"{best}: they are too bad")
    return f"{count:,} keys, mean BER {mean:.4f}"


def _of_classes(x: Experiment) -> bool:
    return x.method.access == "outputs" and x.task.gives == "classes"


def trials_are_what_keygen_and_extract_give(x: Experiment, model: nn.Module, key: Key, count: int = 5) -> str:
    """One by one; what a method overrides `trials` with is a quicker way to the same."""
    other = stages.skeleton(x, "stranger")
    one, many, seen = np.random.default_rng(11), np.random.default_rng(11), 0
    for guess, soft in x.method.trials(model, key, other, many, count, x.task):
        alone = x.method.keygen(other, one, x.task)
        require(_equal(guess, alone), "trials draws other keys than keygen")
        read = x.method.extract(model, alone, x.task)
        require(torch.allclose(soft, read, atol=1e-4), "trials reads other bits than extract")
        seen += 1
    require(seen == count, f"trials gave {seen} keys of {count}")
    return f"{count} keys"


def embedding_repeats_on_the_owners_data(x: Experiment, model: nn.Module, key: Key) -> str:
    """From an empty folder the same weights and key, bit for bit, drawn from the owner's split and validation alone."""
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        moved = {"results_dir": folder, "cache": {"root": f"{folder}/cache"}}
        again = run.prepare(OmegaConf.merge(x.cfg, moved), progress=x.progress)
        with draws(again) as drawn:
            entry = stages.mark(again)
        other, second = stages.opened(again, entry)
    own_draws(drawn)
    require(_equal(key, second), "the same configuration gave another key")
    require(_same(model.state_dict(), other.state_dict()), "the same configuration gave other weights")
    return f"{sum(t.numel() for t in model.state_dict().values()):,} numbers"


@contextlib.contextmanager
def draws(x: Experiment) -> Iterator[list[tuple[str, str]]]:
    """(role, split) of everything that is drawn from the experiment's kind of task meanwhile."""
    cls, drawn = type(x.task), []
    own = cls.tensors

    def record(self: Any, split: str) -> Any:
        drawn.append((self.role, split))
        return own(self, split)

    cls.tensors = record
    try:
        yield drawn
    finally:
        cls.tensors = own


def own_draws(drawn: list[tuple[str, str]]) -> None:
    """Owners draw from what is theirs, and only the judge from the test split."""
    require(("owner", "owner") in drawn, "embed draws nothing from the owner's split: task.batches(task.train)")
    strange = {split for role, split in drawn if role == "owner"} - set(ALLOWED["owner"])
    require(not strange, f"the owner draws from {sorted(strange)}")
    require({role for role, split in drawn if split == "test"} <= {"judge"}, "somebody but the judge draws from test")


# Of a method with an attack


def pairs_run_or_say_why_not(cfg: DictConfig, progress: Progress = unseen) -> str:
    """Rows in the protocol's words, found done when asked again, and the same when forced, bit for bit."""
    first = run.run(cfg, progress=progress)
    require(first.status in ("done", "skipped", "cached"), f"{first.status}: {first.message}")
    marks = any(row.ber is not None for row in first.rows)
    for row in first.rows:
        at = metrics.suspect(row.knob, row.strength)
        require(row.status in ("ok", "skipped"), f"{at}: {row.status}: {row.error}")
        require(row.status == "ok" or row.error, f"{at} was skipped without a reason")
        if row.status == "skipped":
            continue
        most = 100 if row.utility_name in ("top1", "miou", "pixels") else math.inf
        require(row.utility is not None and 0 <= row.utility <= most, f"{at}: utility {row.utility}")
        require((row.ber is None) == (not marks), f"{at}: BER {row.ber}")
        require(row.ber is None or (0 <= row.ber <= 1 and row.log10_p <= 0), f"{at}: BER {row.ber}, p {row.log10_p}")
        require((row.claim_ber is None) == (row.claim_detected is None), f"{at}: half a claim")
    knobs = [row.knob for row in first.rows]
    require(knobs[: 1 + marks] == ["host", "none"][1 - marks :], f"the first rows are {knobs[:2]}")
    again = run.run(cfg)
    require(again.status in ("cached", "skipped"), f"asked again it is {again.status}")
    require(facts(again.rows) == facts(first.rows), "its run file reads otherwise than the run")
    forced = facts(run.run(OmegaConf.merge(cfg, {"force": True}), progress=progress).rows)
    for one, other in zip(facts(first.rows), forced, strict=True):
        odd = [name for name in one if one[name] != other[name]]
        require(not odd, f"{metrics.suspect(one['knob'], one['strength'])}: another {odd[:1]} when it is done again")
    reason = next((row.error for row in first.rows if row.status == "skipped"), "")
    return f"skipped: {reason}" if first.status == "skipped" else f"{len(first.rows)} rows, the same again"


def victims_stay_bit_identical(x: Experiment, model: nn.Module, key: Key) -> str:
    """Weights, buffers, gradients, what requires some, and the mode."""
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    task = x.task.view("attacker")
    victim = Victim(model, x.method, task, fresh=lambda seed: x.task.build(x.model, seed), where=key.where, key=key)
    if reason := x.attack.skip(victim):
        return f"skipped: {reason}"
    count = sum(1 for _ in x.attack.run(victim, np.random.default_rng(0), Fit(x.train, 0, may_diverge=True)))
    require(_same(before, model.state_dict()), "the attack changes its victim: it works on a copy")
    require([p.requires_grad for p in model.parameters()] == flags, "the attack leaves other parameters frozen")
    require(all(p.grad is None for p in model.parameters()), "the attack leaves gradients in its victim")
    require(not model.training, "the attack leaves its victim in training mode")
    return f"{count} snapshot{'s' * (count != 1)}"


def attackers_are_handed_no_more_than_they_state(x: Experiment) -> str:
    """The victim that a run hands over: key, layer and data only where `knows` and `data` say so."""
    seen: list[Victim] = []

    class Spy(type(x.attack)):
        def skip(self, victim: Victim) -> str:
            seen.append(victim)
            return "seen enough"

    Spy.__module__ = type(x.attack).__module__
    spied = copy.copy(x)
    object.__setattr__(spied, "attack", Spy(**{f.name: getattr(x.attack, f.name) for f in fields(x.attack)}))
    list(run.rows(spied))
    if not seen:
        return f"not reached: {threat.out_of_reach(x)}"
    (victim,) = seen
    require(victim.key is None or "key" in x.attack.knows, "it is handed the key")
    require(victim.where is None or {"key", "layer"} & set(x.attack.knows), "it is handed the layer")
    require(victim.task.role == ("attacker" if x.attack.data == "attacker" else "outsider"), "it has another's view")
    hidden = ("owner", "test", *(("attacker", "validation") if x.attack.data == "none" else ()))
    for split in hidden:
        refused(f"it draws from the {split} split", lambda split=split: next(victim.task.batches(split, 4)))
    refused("it measures utility on the test split", lambda: victim.task.utility(victim.model))
    refused("it takes the judge's view", lambda: victim.task.view("judge"))
    return ", ".join([*x.attack.knows, *(["data"] if x.attack.data == "attacker" else [])])


def refused(why: str, ask: Any) -> None:
    """Raises Broken unless what is asked is refused to whoever asks."""
    try:
        ask()
    except PermissionError:
        return
    raise Broken(why)


def _equal(one: Key, other: Key) -> bool:
    secrets = one.secret.keys() == other.secret.keys()
    same = secrets and all(torch.equal(one.secret[name], other.secret[name]) for name in one.secret)
    return same and torch.equal(one.message, other.message) and one.where == other.where


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
