"""Fine-Pruning (Liu, Dolan-Gavitt, Garg, RAID 2018): units that the attacker's data leave silent go, then training."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import within
from bench.metrics import Knob
from bench.models import anatomy
from bench.models.symmetry import Trace, extent
from bench.models.weights import stage, weights
from bench.types import Fit, Snapshot, Task, TunedAttack, Victim


@dataclass(frozen=True)
class Fineprune(TunedAttack):
    """Zero the least active share of the last stage's units, then train for `epochs` on the attacker's data.

    Units (Sec. 3.1: the channels of the last convolution) are those of the last stage that are read last: the channels
    that the head reads, together in all blocks that add to them; in a transformer, whose residual stream is no stage's
    alone, the hidden units of the last block's MLP. Activity is the mean magnitude of what their reader is given, over
    the attacker's images. All that makes or reads a unit is zeroed, normalisation too, so that it stays silent.
    """

    knobs: ClassVar[dict[str, Knob]] = {"share": Knob("Share of units removed")}
    needs_data = True

    shares: list[float] = within(0.0, 1.0)
    epochs: int = within(0)

    def skip(self, victim: Victim) -> str | None:
        return None if units(victim.model, victim.task.example(1)) else "no units of the last stage can be taken out"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        found = units(victim.model, victim.task.example(1))
        assert found is not None  # skip has looked
        order = found.ranked(activity(victim.model, found.reader, victim.task, fit.train.batch_size))
        for share in self.shares:
            model = copy.deepcopy(victim.model)
            found.silence(model, order[: round(share * len(order))])
            yield Snapshot("share", share, model)
            if self.epochs:
                model = fit(model, victim.task, **self.schedule(self.epochs))
                yield Snapshot("share, tuned", share, model, continues=True)


@dataclass(frozen=True)
class Units:
    """Units by number. reader: name of the module that is given them; columns: the number [in] of each of its inputs;
    places: parameter -> numbers, broadcastable to its shape, one array for each axis along which it has units."""

    reader: str
    columns: np.ndarray
    places: dict[str, list[np.ndarray]]

    def ranked(self, active: np.ndarray) -> np.ndarray:
        """Numbers, least active first; active: mean magnitude [in] of the reader's inputs."""
        numbers = np.unique(self.columns)
        means = [active[self.columns == number].mean() for number in numbers]
        return numbers[np.argsort(means, kind="stable")]

    @torch.no_grad()
    def silence(self, model: nn.Module, numbers: np.ndarray) -> None:
        """Zero whatever belongs to these units, in place."""
        for name, places in self.places.items():
            weight = model.get_parameter(name)
            for ids in places:
                gone = torch.from_numpy(np.isin(ids, numbers)).to(weight.device)
                weight.masked_fill_(gone, 0.0)


def units(model: nn.Module, example: Tensor) -> Units | None:
    """The units of the last stage that are read last, or None where none can be told apart (bench.models.symmetry)."""
    model = copy.deepcopy(model).eval()
    inner = [name for name in weights(model) if not anatomy.of(model).headed(name)]
    names, last = [*weights(model)], stage(inner[-1]) if inner else ""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs as one operation, which nothing can be read off
    try:
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            trace = Trace(model, "channels")
            trace.record(example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    families: dict[tuple, list[int]] = defaultdict(list)
    for root, (places, _) in trace.channels().items():
        families[tuple(place for place, _ in places)].append(root)
    best, found = (-1, -1), None
    for places, roots in families.items():
        axes = [(names.index(name), extent(trace.declared[name][i]), name, i) for name, i in places if name in names]
        makers = [at for at, axis, name, _ in axes if 0 in axis and name in inner]
        readers = [(at, name, i) for at, axis, name, i in axes if axis == {1}]
        own = all(stage(name) == last or name not in inner for _, _, name, _ in axes)
        if not (own and makers and readers) or (rank := (max(readers)[0], max(makers))) <= best:
            continue
        _, reader, i = max(readers)
        columns = np.abs(trace.roots(trace.declared[reader][i])).ravel()
        if not np.isin(columns, roots).all() or trace.tensors[reader].shape[1] != len(columns):
            continue
        numbers = defaultdict(list)
        for name, j in places:
            if isinstance(trace.tensors[name], nn.Parameter):
                ids = np.abs(trace.roots(trace.declared[name][j]))
                numbers[name].append(np.where(np.isin(ids, roots), ids, 0))
        best, found = rank, Units(reader.rpartition(".")[0], columns, dict(numbers))
    return found


@torch.no_grad()
def activity(model: nn.Module, reader: str, task: Task, batch_size: int) -> np.ndarray:
    """Mean magnitude [in] of each input of the module `reader`, over the split that `task` trains on and all places."""
    module, sums, count = model.get_submodule(reader), 0.0, 0

    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal sums, count
        x = args[0].detach().abs().double()
        x = x.movedim(1, -1) if isinstance(module, nn.Conv2d) else x
        x = x.reshape(-1, x.shape[-1])
        sums, count = sums + x.sum(0), count + len(x)

    hook = module.register_forward_pre_hook(look)
    try:
        for batch in task.batches(task.train, batch_size):
            model(task.inputs(batch))
    finally:
        hook.remove()
    return (sums / count).cpu().numpy()
