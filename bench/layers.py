"""`python -m bench.layers model=...`: the weights that can carry a mark, and which of them each method would take."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING

from bench import usage
from bench.cli import CONF
from bench.types import UserError

if TYPE_CHECKING:
    from torch import nn


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return usage.answer(argv, __doc__, show)


def show(overrides: list[str]) -> None:
    """Print every convolution and linear weight with its size; mark what the chosen model's methods would take."""
    from hydra import compose, initialize_config_dir
    from rich.console import Console
    from rich.table import Table

    from bench import run
    from methods import layers

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
        others = {
            name: compose("config", overrides=[w for w in overrides if not w.startswith("method")] + [f"method={name}"])
            for name in usage.options("method")
        }
    x = run.prepare(cfg)
    model = run.fresh(x)
    taken = {name: _takes(other, x, model) for name, other in others.items()}
    stars = {where[0] for where in taken.values() if len(where) == 1}
    outside = set(layers.weights(model)) - set(layers.candidates(model))
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("layer", overflow="fold")
    for column in ("shape", "weights", "per output"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, w in layers.weights(model).items():
        sign = "*" if name in stars else ("h" if name in outside else "")
        shape = "x".join(map(str, w.shape))
        table.add_row(sign, name.removesuffix(".weight"), shape, f"{w.numel():,}", f"{w[0].numel():,}")
    console.print(
        f"{x.model.title}, {x.data.name}: method.layer=NAME or a glob; h: head, never by default",
        style="bold",
    )
    console.print(table)
    for method, where in taken.items():
        names = [name.removesuffix(".weight") for name in where]
        short = f"{len(names)} layers, {names[0]} to {names[-1]}" if len(names) > 3 else ", ".join(names)
        console.print(f"* {method}: {short or 'marks nothing'}")


def _takes(cfg: object, x: object, model: nn.Module) -> tuple[str, ...]:
    """The weights a method with its defaults marks, why it marks none, or nothing."""
    from bench import run, spec

    method = spec.build(cfg.method, "method")
    try:
        key = method.keygen(method.extend(copy.deepcopy(model), x.task, 0), run.rng(0, "layers"))
    except UserError as error:
        return (str(error),)
    if method.access == "outputs":
        return ("the network's outputs",)
    return key.where if key else ()


if __name__ == "__main__":
    sys.exit(main())
