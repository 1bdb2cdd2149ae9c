"""What a method adds to a training step: time of one epoch of its `embed` over one of plain training.

The first epoch of each is not timed: what is built once (projections, index sets) is no cost of a step.

    python benchmarks/overhead.py [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import compare
import subject
from torch import nn

from bench import stages
from bench.train import Fit
from bench.types import Task

# Overrides by case, and the goal: ResNet-18 with ImageNet stem, batches of 64.
CASES = {
    "uchida": (("method=uchida",), "<= 1.02"),
    "neuralmark": (("method=neuralmark",), "<= 1.02"),
    "greedy": (("method=greedy",), "<= 1.05"),
    "vote": (("method=vote",), "<= 1.05"),
    "frequency": (("method=frequency",), "<= 1.1"),
    "frequency, in place": (("method=frequency", "method.module=false"), None),
    "riga": (("method=riga",), "<= 1.3"),
    "deepsigns": (("method=deepsigns",), "<= 1.3"),
    "watermas": (("method=watermas",), "<= 1.35"),
    "watermas, every step": (("method=watermas", "method.every=1"), None),
    "watermas, substitution alone": (("method=watermas", "method.sharpness=0"), None),
    "tondi": (("method=tondi", "method.deviation=start"), "<= 1.05"),
}


@dataclass(frozen=True)
class Timed(Fit):
    """The training loop as `embed` calls it; `took` gets the seconds of each epoch but the first."""

    took: list[float] = field(default_factory=list)

    def __call__(self, model: nn.Module, task: Task, **how: Any) -> nn.Module:
        epochs = self.epochs(model, task, **how)
        next(epochs)
        device = next(model.parameters()).device.type
        for _ in range(self.train.epochs - 1):
            self.took.append(compare.seconds(lambda: next(epochs), device))
        return model


def prepared(overrides: tuple[str, ...], count: int, epochs: int, device: str) -> Any:
    """A function that embeds anew and returns the seconds of the timed epochs."""
    x = subject.experiment(count, "model=resnet18", f"device={device}", f"train.epochs={epochs}", *overrides)
    key = x.method.keygen(stages.skeleton(x), x.rng("owner", "key"), x.task)

    def once() -> list[float]:
        fit, model, owner = Timed(x.train, 0), stages.skeleton(x), x.task.view("owner")
        if key is None:
            fit(model, owner)
        else:
            x.method.embed(model, key, owner, fit)
        return fit.took

    return once


def main() -> None:
    args = compare.arguments(__doc__, ("--device", {"default": "auto"}), ("--only", {"default": ""}))
    rounds = args.rounds or (3 if args.quick else 9)
    steps, epochs = (4, 2) if args.quick else (8, 3)
    named = {"none": (("method=none",), None)} | {k: v for k, v in CASES.items() if args.only in k}
    cases = {name: prepared(overrides, 64 * steps, epochs, args.device) for name, (overrides, _) in named.items()}
    # Each round holds a few epochs; the quickest is the one least disturbed, for baseline and case alike.
    found = compare.alternate({name: lambda once=once: min(once()) for name, once in cases.items()}, rounds)
    plain = sorted(found["none"])[rounds // 2]
    print(f"plain training: {1000 * plain / steps:.1f} ms a step of 64 images", flush=True)
    lines = [
        compare.compared(name, "plain training", found[name], found["none"], goal)
        for name, (_, goal) in named.items()
        if name != "none"
    ]
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
