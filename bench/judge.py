"""The judge: a snapshot becomes one row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from bench import metrics
from bench.experiment import Experiment
from bench.gallery import Gallery, Sketch, Writings
from bench.models import align, weights
from bench.stages import evaluate
from bench.types import Key, Row, Snapshot, Task


@dataclass(frozen=True)
class Judge:
    """Who measures the suspects of one run: with the owner's key (None: nothing is marked), against the utilities of
    host and victim, {utility_host, utility_victim} and what else all rows are told (controls.confidence); a gallery
    keeps what suspects give, for people. `committed`: the marked network as it was committed with the key, by which a
    suspect's channels are put back (verify.align)."""

    x: Experiment
    key: Key | None
    utilities: dict[str, Any]
    gallery: Gallery | Sketch | Writings | None = None
    committed: nn.Module | None = None

    def row(self, snapshot: Snapshot, **known: Any) -> Row:
        """The owner's bits, the claim's if there is one, and utilities, unless they are `known` already."""
        x, task, key = self.x, self.x.task, self.key
        values = {"utility_name": task.utility_name, **self.utilities, **snapshot.facts, **known}
        if snapshot.moved:
            # Utility is now the other data set's, and there is no victim or host to compare with.
            task = x.other
            values |= {"utility_name": f"{task.utility_name}@{task.name}", "utility_victim": None, "utility_host": None}
        if "utility" not in values:
            values["utility"] = evaluate(x, task, snapshot.model)
        measured = "utility_validation" in values or metrics.is_control(snapshot.knob)
        if task.size("validation") and not measured:
            values["utility_validation"] = evaluate(x, task, snapshot.model, "validation")
        if key is not None:
            error, log10_p, ok = judged(x, snapshot.model, key)
            values |= {"n_bits": key.n_bits, "ber": error, "log10_p": log10_p, "detected": ok, "tests": x.tests}
            values |= {"committed": x.readings > 1, "chance": _uneven(x, key)}
            if not ok and x.readings > 1 and self.committed is not None:
                values |= self.aligned(snapshot.model)
        if self.gallery is not None:
            self.gallery.add(x, snapshot, key, values["utility"])
        if snapshot.claim is not None:
            error, log10_p, ok = judged(x, snapshot.model, snapshot.claim, x.bar)
            values |= {"claim_ber": error, "claim_log10_p": log10_p, "claim_detected": ok}
            values["claim_chance"] = _uneven(x, snapshot.claim)
            if snapshot.reference is not None:  # whoever may choose it now reads what he likes
                values["align"] = "claim read by position: its reference was not committed before the dispute"
        return x.row(snapshot.knob, strength=snapshot.strength, **values)

    def aligned(self, model: nn.Module) -> dict[str, Any]:
        """Values of a row for a suspect that does not verify by position: what it reads, and whether it verifies, after
        its channels were put back."""
        x, key = self.x, self.key
        try:
            found = align.aligned(self.reference, model)
        except align.OtherShapes as error:
            return {"align": f"not aligned: {error}"}
        error, log10_p, ok = judged(x, found.model, key)
        return {"ber_aligned": error, "log10_p_aligned": log10_p, "detected": ok, "align": _said(found)}

    @cached_property
    def reference(self) -> align.Reference:
        """The committed copy without what the key reads: who looks at that aligns strangers until they verify."""
        unread = align.hidden(self.x.method, self.committed, self.key)
        return align.prepared(self.committed, unread, self.x.task.example())

    def control(self, task: Task, snapshot: Snapshot) -> Row:
        """The row of what is unmarked, on a task's pictures; it belongs to this run all the same."""
        row = replace(self, x=replace(self.x, task=task), gallery=None).row(snapshot)
        run_id, config_hash = self.x.hashes
        return replace(row, run_id=run_id, config_hash=config_hash)


def _uneven(x: Experiment, key: Key) -> float | None:
    """A key's chance of a match where it is not one half, as rows have it."""
    chance = x.method.chance(key)
    return None if chance == 0.5 else chance


def _said(found: align.Aligned) -> str:
    """What the alignment did to a suspect, in words."""
    parts = [f"{found.moved} families moved", f"correlation {found.score:.2f}"]
    parts += [f"{found.merged} units merged"] * bool(found.merged) + ["rescaled"] * found.scaled
    parts += [f"{found.bare} families bare"] * bool(found.bare) + ["not settled"] * (not found.converged)
    return ", ".join(parts)


def judged(x: Experiment, model: nn.Module, key: Key, alpha: float | None = None) -> tuple[float, float, bool]:
    """(BER, log10 p, detected) of one key: bits match at p <= alpha (None: the owner's, verify.alpha; `x.bar` is for
    claims of attackers, who may try many), and every prescribed check passes."""
    # A network of another architecture has no such weights: no evidence, which is half an error a bit.
    soft = x.method.extract(model, key, x.task) if carries(x, model, key) else torch.full((key.n_bits,), 0.5)
    error, log10_p = x.method.evidence(soft, key)
    asked, readings = (x.verify.alpha, x.readings) if alpha is None else (alpha, 1)  # claims are read by position
    return error, log10_p, metrics.is_detected(log10_p, asked, readings) and x.method.accepts(key)


def carries(x: Experiment, model: nn.Module, key: Key) -> bool:
    """Whether a suspect has the weights that the key names, in the shapes of the marked network."""
    try:
        return all(weights.read(model, name).shape == x.shapes[name] for name in key.where)
    except AttributeError:
        return False
