"""`python -m bench.layers model=...`: the weights that can carry a mark, and which of them each method would take."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING

from bench.cli import usage
from bench.cli.compose import composed, placed
from bench.errors import UserError
from bench.progress import console

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from bench.experiment import Experiment


def show(overrides: list[str]) -> None:
    """Print every convolution and linear weight with its size; mark what the chosen model's methods would take."""
    usage.check(overrides)
    from rich.table import Table

    from bench import stages
    from bench.experiment import prepare
    from bench.models import weights

    folders, _ = placed(overrides)
    words = [word for word in overrides if not word.startswith("method")]
    others = {name: composed([*words, f"method={name}"]) for name in usage.options("method", folders)}
    x = prepare(composed(overrides))
    model = stages.fresh(x)
    taken = {name: _takes(other, x, model) for name, other in others.items()}
    stars = {where[0] for where in taken.values() if len(where) == 1}
    outside = set(weights.weights(model)) - set(weights.candidates(model))
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("layer", overflow="fold")
    for column in ("shape", "weights", "per output"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, w in weights.weights(model).items():
        sign = "*" if name in stars else ("h" if name in outside else "")
        size = "x".join(map(str, w.shape)), f"{w.numel():,}", f"{w[0].numel():,}"
        table.add_row(sign, name.removesuffix(".weight"), *size)
    out.print(f"{x.model.title}, {x.data.name}: method.layer=NAME or a glob; h: head, never by default", style="bold")
    out.print(table)
    for method, where in taken.items():
        names = [name.removesuffix(".weight") for name in where]
        short = f"{len(names)} layers, {names[0]} to {names[-1]}" if len(names) > 3 else ", ".join(names)
        out.print(f"* {method}: {short or 'marks nothing'}")


def _takes(cfg: DictConfig, x: Experiment, model: nn.Module) -> tuple[str, ...]:
    """The weights a method with its defaults marks, why it marks none, or nothing."""
    from bench import spec

    method = spec.build(cfg.method, "method")
    try:
        key = method.keygen(method.extend(copy.deepcopy(model), x.task, 0), x.rng("layers"), x.task)
    except UserError as error:
        return (str(error),)
    if method.access == "outputs":
        return ("the network's outputs",)
    return key.where if key else ()


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: __doc__, show))
