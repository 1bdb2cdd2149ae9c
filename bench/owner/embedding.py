"""A mark in a network that somebody has: from a checkpoint to a marked one, its key and a commitment."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench import controls, metrics, stages
from bench.cli.compose import composed
from bench.errors import ConfigError, UserError
from bench.experiment import Experiment
from bench.models import align, base, branches, checkpoints
from bench.owner import commitment, evidence, keyfile
from bench.owner.evidence import Evidence
from bench.store.files import published
from bench.types import Key

FILES = ("model.safetensors", "key.safetensors", "commitment.json", "statement.txt")


@dataclass(frozen=True)
class Embedded:
    """What came of it. before, after: utility on validation (before None: there was no network before); evidence: read
    from the file that was written; weakest: as Evidence has it; false_positives of random_keys, and their mean BER."""

    folder: Path
    before: float | None
    after: float
    utility_name: str
    evidence: Evidence
    random_keys: int
    false_positives: int
    mean_ber: float | None
    said: tuple[str, ...]


def room(out: str) -> Path:
    """The folder that is written to. Raises UserError for one that holds a key already."""
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out={out}: no folder", 2)
    if there := [name for name in FILES if (folder / name).exists() or (folder / name).is_symlink()]:
        raise UserError(f"out={out}: {there[0]} is there already, and a key that is lost is lost: another folder", 2)
    return folder


def embed(x: Experiment, out: str, statement: str = "") -> Embedded:
    """Mark the network of a configuration and write it to the folder `out`; message and secret are drawn from the
    operating system. Raises UserError; nothing is left half-written."""
    folder, method = room(out), x.method
    if not method.marks:
        raise ConfigError("method=none embeds no mark: method=neuralmark")
    if not x.task.size("validation"):
        raise ConfigError("fidelity is measured on validation images, and there are none: data.validation=0.1")
    model = stages.skeleton(x)
    draws = np.random.default_rng(secrets.randbits(256))
    key = method.keygen(model, draws, x.task.view("owner"))
    evidence.enough(method, key, x.verify.alpha)
    where = f"{len(key.where)} layers" if len(key.where) > 3 else ", ".join(key.where) or "its outputs"
    before, given = None, bool(x.model.checkpoint or getattr(x.model, "weights", None))
    if given or not method.from_scratch:
        host = stages.fresh(x)
        if x.host_train.epochs:
            x.say(f"training an unmarked network first, {x.host_train.epochs} epochs")
            fit = stages.owner_fit(x, "host")
            fit(host, stages.owned(x, fit))
        before = stages.evaluate(x, x.task, host.eval(), "validation")
        model.load_state_dict(host.state_dict(), strict=False)  # what the method adds stays untrained
    x.say(f"embedding {x.method_name}, {key.n_bits} bits in {where}, {x.mark_train.epochs} epochs")
    fit = replace(stages.owner_fit(x), seed=secrets.randbits(63))
    model = method.embed(model, key, stages.owned(x, fit), fit).eval()
    tensors, said = _as_given(x, model)
    written = _rounded(model, tensors)
    after = stages.evaluate(x, x.task, written, "validation")
    owned = _owned(x, written, key, tensors)
    made = evidence.judged(owned, written, x.verify.alpha, 1, x.task.view("owner"))
    read = controls.tried(x, written, key, stages.skeleton(x, "stranger")) if x.verify.keys else None
    hits = controls.passed(read, x.verify.alpha) if read else 0
    error = float(np.mean(read["ber"])) if read and read["ber"] else None
    _write(folder, tensors, owned, statement)
    if method.access == "weights":
        made = evidence.verify(folder / FILES[0], folder / FILES[1], alpha=x.verify.alpha)
    return Embedded(folder, before, after, x.task.utility_name, made, x.verify.keys, hits, error, tuple(said))


def _as_given(x: Experiment, model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The marked network's tensors under the names and in the dtypes of the checkpoint that it came from."""
    state = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    if not x.model.checkpoint:
        return {n: t.clone() for n, t in state.items() if not n.startswith("input_")}, []
    raw = checkpoints.read(x.model.checkpoint)
    found = base.fitting(x.model.checkpoint, state)
    said, tensors = list(found.said), {}
    for name, tensor in state.items():
        if name in found.tensors:
            old = found.tensors[name]
            tensors[f"{found.prefix}{name}"] = tensor.to(old.dtype if old.dtype != torch.bool else tensor.dtype).clone()
            if old.shape != tensor.shape:
                said.append(f"{name} is new: {tuple(tensor.shape)}, and was {tuple(old.shape)}")
        elif name.startswith(f"{branches.NAME}."):
            tensors[f"{found.prefix}{name}"] = tensor.clone()
    if any(name not in raw.tensors for name in tensors if f".{branches.NAME}." not in f".{name}"):
        said.append("weights that were parametrised are written as what they compute")
    return tensors, said


def _rounded(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network as the file has it: in the checkpoint's dtypes."""
    made, own = copy.deepcopy(model), model.state_dict()
    held = checkpoints.unwrapped(checkpoints.of(tensors), own).tensors
    made.load_state_dict({**own, **held})
    return made.eval()


def _owned(x: Experiment, model: nn.Module, key: Key, tensors: Mapping[str, Tensor]) -> keyfile.Owned:
    traced = None
    if x.method.access == "weights":
        x.say("finding which channels may be exchanged")
        traced = keyfile.kept(align.traced(model, (x.task.example(),)))
    held = checkpoints.plain(checkpoints.of(tensors)).tensors
    about = keyfile.described(model, key)
    return keyfile.Owned(key, x.method, **about, digest=keyfile.content(held), traced=traced)


def _write(folder: Path, tensors: dict[str, Tensor], owned: keyfile.Owned, statement: str) -> None:
    """The key first: a marked network without its key is worth nothing. Then the network, then what commits to both."""
    try:
        keyfile.save(owned, folder / FILES[1])
        with published(folder / FILES[0]) as aside:
            save_file(tensors, aside, {"format": "pt"})
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o666 & ~umask)  # safetensors does not ask
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    commitment.commit(folder / FILES[2], folder / FILES[1], folder / FILES[0], statement)


def lines(made: Embedded) -> Iterator[str]:
    """What is printed of it."""
    name = made.utility_name
    if made.before is None:
        yield f"{name} on validation: {made.after:.2f} (there is no unmarked network to compare with)"
    else:
        lost = metrics.lost(made.before, made.after, name)
        yield f"{name} on validation: {made.before:.2f} before, {made.after:.2f} marked: fidelity {lost:+.2f}"
    found = made.evidence
    yield f"BER {found.ber:.4g}, the weakest bit is read at {found.weakest:.3f} (0.5: undecided, 1: certain)"
    verdict = "verified" if found.detected else "NOT VERIFIED"
    yield f"p = {evidence.number(found.log10_p)}: {verdict}, alpha {found.alpha:g}"
    if made.mean_ber is not None:
        yield (
            f"control: {made.false_positives} of {made.random_keys:,} random keys verify, mean BER {made.mean_ber:.3f}"
        )
    yield from made.said
    for file in FILES:
        yield str(made.folder / file)


def words(given: list[str]) -> list[str]:
    """The words of a command as `embed` means them: a network that is given is taken as it is, and trained on."""
    keys = {word.partition("=")[0].lstrip("+") for word in given}
    more = []
    if {"model.checkpoint", "model.weights"} & keys:
        more += [] if "host.epochs" in keys else ["host.epochs=0"]
        has = "situation" in composed(given).method
        more += ["method.situation=finetune"] if has and "method.situation" not in keys else []
    return [*given, *more, *([] if "attack" in keys else ["attack=none"])]
