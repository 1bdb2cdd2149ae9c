"""What bits cannot show of the frequency method: its components, before and after. Each is measured once and cached.

Both work on the victim that a run's configuration names, from the cache of marks.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from bench import spec, stages, threat
from bench.errors import ConfigError, UserError
from bench.experiment import Experiment, prepare
from bench.store.cache import cached
from bench.train import Fit
from bench.types import Key, Snapshot

VERSION = 2  # 2: in float64 as well


def fine_tuned(cfg: DictConfig) -> dict[str, float]:
    """The run's fine-tuning made again with its own seeds: {components, trained, decay, steps, components_double}.

    components: norm of the change of all components over their norm, after one common factor, 1 - `decay`, is taken
    out: weight decay scales all alike. trained: relative change of the rest of the kernels, which gradients reach.
    steps: of the optimiser. components_double: the same change where network and images are float64: rounding is
    then 5e8 times smaller, what gradients do is not. Raises ConfigError for another method or attack.
    """
    x = prepared(cfg)
    if x.attack_name != "finetune":
        raise ConfigError(f"attack={x.attack_name}: components are compared after attack=finetune")

    def change(model: nn.Module, key: Key | None) -> dict[str, float]:
        attacker = threat.stolen(x, model, key)
        task = attacker.other or attacker.task
        fit = Fit(x.train, spec.derive(x.attack.seed, "attack", "finetune", "fit"), may_diverge=True)
        steps = x.attack.run(attacker, np.random.default_rng(spec.derive(x.attack.seed, "attack", "finetune")), fit)
        last: Snapshot = deque(steps, maxlen=1)[0]
        (before, rest), (after, moved) = map(x.method.parts, (model, last.model))
        factor = float((after * before).sum() / before.square().sum())
        return {
            "components": float((after - factor * before).norm() / before.norm()),
            "trained": float((moved - rest).norm() / rest.norm()),
            "decay": 1 - factor,
            "steps": x.attack.epochs * max(1, task.size(task.train) // x.train.batch_size),
        }

    def measure() -> dict[str, float]:
        model, key = stages.opened(x, stages.mark(x))
        found = change(model, key)
        return found | {"components_double": change(copy.deepcopy(model).double(), key)["components"]}

    return _measured(x, "fine_tuned", measure)


def rearranged(cfg: DictConfig) -> dict[str, float]:
    """Filters and channels of the module's kernels in random orders, times random factors: {difference}.

    difference: of the components of those kernels from the components, rearranged in the same way, in their norm.
    Raises ConfigError for another method.
    """
    x = prepared(cfg)

    def measure() -> dict[str, float]:
        model, _ = stages.opened(x, stages.mark(x))
        draw = x.rng("invariance", "rearranged")
        before, kernels = x.method.components(model).detach(), x.method.kernels(model).detach()
        d, c = before.shape[:2]
        rows, columns = draw.permutation(d), draw.permutation(c)
        factors = [np.exp(draw.uniform(-1, 1, n)) * draw.choice([-1, 1], n) for n in (d, c)]
        table = torch.from_numpy(np.outer(*factors)).to(kernels)

        def moved(values: torch.Tensor) -> torch.Tensor:
            scaled = values * table.view(d, c, *[1] * (values.dim() - 2))
            return scaled[rows][:, columns]

        changed = copy.deepcopy(model)
        with torch.no_grad():
            x.method.kernels(changed).copy_(moved(kernels))
        found, expected = x.method.parts(changed)[0], moved(before).double()
        return {"difference": float((found - expected).norm() / expected.norm())}

    return _measured(x, "rearranged", measure)


def prepared(cfg: DictConfig) -> Experiment:
    x = prepare(cfg)
    if not (hasattr(x.method, "parts") and x.method.module):
        raise ConfigError(f"method={x.method_name} has no frequency module whose components could be compared")
    return x


def _measured(x: Experiment, what: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    def build(folder: Path) -> dict[str, float]:
        found = measure()
        if not all(np.isfinite(value) for value in found.values()):
            raise UserError(f"{what}: the components are no numbers any more")
        return found

    identity = {"what": what, "run": x.run_id, "version": VERSION}
    return cached(x.cache, "invariance", identity, build, x.say).meta["measured"]
