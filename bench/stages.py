"""Host and mark: trained once, cached by their content's address, opened again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from bench import machine, metrics
from bench.errors import UserError
from bench.experiment import Experiment
from bench.models import branches, lora
from bench.store.cache import Entry, cached, partial
from bench.store.checkpoint import Checkpoint
from bench.store.keys import load_key, save_key
from bench.train import Fit
from bench.types import Key, Task


def host(x: Experiment) -> Entry:
    """The network trained without a mark, by its content's address."""

    def build(folder: Path) -> dict[str, Any]:
        made = f"training {x.model.title} on {x.data.name}, seed {x.seed}, {x.host_train.epochs} epochs"
        x.say(f"host: {made if x.host_train.epochs else f'{x.model.title} as it is'}")
        model = fresh(x)
        return make(x, folder, owner_fit(x, "host"), lambda fit: fit(model, owned(x, fit)))[1]

    return cached(x.cache, "host", x.host_identity, build, x.say)


def baseline(x: Experiment) -> Entry:
    """The unmarked network that a victim is compared with: the host or, where embedding trained that further, one that
    was trained as long on the same without a mark."""
    trains = x.method.trains_on if x.method.marks else ""
    if not trains:
        return host(x)

    def build(folder: Path) -> dict[str, Any]:
        model = load_weights(fresh(x), host(x).path)
        x.say(f"host: training on without a mark, on {trains}")

        def trained(fit: Fit) -> nn.Module:
            task = owned(x, fit)
            if trains == lora.TRAINS:
                return lora.tuned(model, task, fit)
            return fit(model, task, **({"loss": branches.own_outputs(model, task)} if trains == "outputs" else {}))

        return make(x, folder, owner_fit(x), trained)[1]

    return cached(x.cache, "host", x.baseline_identity, build, x.say)


def mark(x: Experiment, warn: bool = True) -> Entry:
    """The marked network and its key; warns where bits are missing."""
    entry = cached(x.cache, "mark", x.mark_identity, lambda folder: _embedded(x, folder), x.say)
    if warn and entry["ber"] > 0:
        x.say(
            f"warning: the embedding is incomplete: {round(entry['ber'] * entry['n_bits'], 1):g} of "
            f"{entry['n_bits']} bits are wrong; raise the epochs or the method's strength"
        )
    return entry


def _embedded(x: Experiment, folder: Path) -> dict[str, Any]:
    """keygen, embed, and a check."""
    # The key first: a layer too small for the message should cost a second, not an epoch.
    model = skeleton(x)
    key = x.method.keygen(model, x.rng("owner", "key"), x.task.view("owner"))
    if not x.method.from_scratch:
        load_weights(model, host(x).path)
    where = f"{len(key.where)} layers" if len(key.where) > 3 else ", ".join(key.where) or "its outputs"
    x.say(f"mark: embedding {x.method_name}, {key.n_bits} bits in {where}")
    model, measured = make(x, folder, owner_fit(x), lambda fit: x.method.embed(model, key, owned(x, fit), fit))
    save_key(key, folder / "key.safetensors", x.method_name, x.method.version)
    soft = x.method.extract(model, key, x.task.view("owner")).cpu()
    error, weakest = metrics.ber(soft, key.message), metrics.weakest(soft, key.message)
    x.say(f"mark: BER {error:.4g}, the weakest bit is read at {weakest:.3f} (0.5: undecided, 1: certain)")
    return measured | {"ber": error, "weakest": weakest, "n_bits": key.n_bits}


def make(
    x: Experiment, folder: Path, fit: Fit, trained: Callable[[Fit], nn.Module]
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a stage's network, save it, measure it: utility, and what training alone cost, killed processes' too."""
    minutes = fit.train.checkpoint
    kept = Checkpoint(partial(folder), minutes, x.say) if minutes is not None else None
    started = machine.start(x.device)
    model = trained(replace(fit, checkpoint=kept))
    seconds, peak = machine.stop(x.device, started)
    save_model(model, str(folder / "model.safetensors"))
    seconds = round(seconds + (kept.spent if kept else 0.0), 3)
    cost = {"seconds": seconds, "peak_mb": peak, "device": machine.device_name(x.device), "threads": machine.threads()}
    return model, {"utility": evaluate(x, x.task, model), **cost}


def evaluate(x: Experiment, task: Task, model: nn.Module, split: str = "test") -> float:
    with x.progress("measuring", None):
        return task.utility(model, split)


def fresh(x: Experiment, role: str = "owner") -> nn.Module:
    return x.task.build(x.model, x.seeded(role, "init"))


def skeleton(x: Experiment, role: str = "owner") -> nn.Module:
    """`fresh`, with what the method adds to the architecture."""
    return x.method.extend(fresh(x, role), x.task, x.seeded(role, "extend"))


def owner_fit(x: Experiment, stage: str = "mark") -> Fit:
    # Host and mark share initialisation and batches: their difference is the method's alone.
    fit = Fit(
        x.mark_train if stage == "mark" else x.host_train, x.seeded("owner", "fit"), say=x.say, progress=x.progress
    )
    return replace(fit, what=f"{stage}: training", log=x.log.losses(stage))


def owned(x: Experiment, fit: Fit) -> Task:
    """The owner's view of the task, with the loss of a schedule of the owner's."""
    task, smoothing = x.task.view("owner"), fit.train.label_smoothing
    return task.smoothed(smoothing) if smoothing else task


def load_weights(model: nn.Module, folder: Path) -> nn.Module:
    """A stage's weights; where `model` has a method's module and the stage (a host) does not, it stays untrained."""
    missing, unexpected = load_model(model, str(folder / "model.safetensors"), strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.startswith(f"{branches.NAME}."))]
    if wrong:
        raise UserError(f"{folder} does not hold this network: {len(wrong)} tensors differ, first {wrong[0]}")
    return model.eval()


def opened(x: Experiment, entry: Entry) -> tuple[nn.Module, Key | None]:
    """A victim, and its owner's key; without a mark, the host and None."""
    key = load_key(entry.path / "key.safetensors") if x.method.marks else None
    return load_weights(skeleton(x), entry.path), key


def public(x: Experiment) -> nn.Module:
    """The host as its publisher has it, without what a method adds."""
    return load_weights(fresh(x), host(x).path)


def cost(entry: Entry) -> dict[str, Any]:
    """Utility of a stage and what it cost to make, whenever and wherever that was."""
    made = {name: entry[name] for name in ("utility", "seconds", "peak_mb", "device")}
    return made | {"threads": entry.meta["measured"].get("threads")}  # stages of before it was noted have none
