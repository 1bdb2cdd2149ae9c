"""A grid of 4 methods x 6 attacks x 2 seeds on digits: the sweep's wall time against the sum of its cells, each made
from nothing in a process of its own as the field's scripts do, and how many trainings each took.

The network is small (0.4 M parameters): with a larger one training outweighs the rest and the ratio grows.

    python benchmarks/sweep.py [--quick] [--json FILE] [--every 5]

`--every k` makes every k-th cell from nothing and counts it k times.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import compare

METHODS = ("uchida", "neuralmark", "frequency", "watermas")
ATTACKS = ("finetune", "prune", "quantize", "noise", "shift", "permute")
# One thread: as quick for so small a network, and a busy machine disturbs it less.
SMALL = ("model=timm", "model.name=test_resnet", "method.n_bits=64", "device=cpu", "threads=1")


def bench(folder: Path, *words: str) -> float:
    """Seconds of `python -m bench`."""
    words = ("-m", "bench", *words, *SMALL)

    def call() -> None:
        argv = [sys.executable, *words, f"results_dir={folder}"]
        done = subprocess.run(argv, cwd=compare.ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr[-500:]}")

    return compare.seconds(call)


def trainings(folder: Path) -> tuple[int, int]:
    """(hosts, marks) that lie in a results folder."""
    return tuple(len(list(folder.glob(f"cache/{stage}/*/meta.json"))) for stage in ("host", "mark"))


def main() -> None:
    args = compare.arguments(__doc__, ("--every", {"type": int, "default": 1}))
    methods, attacks, seeds = (METHODS[:2], ATTACKS[1:3], (0,)) if args.quick else (METHODS, ATTACKS, (0, 1))
    cells = list(itertools.product(methods, attacks, seeds))
    axes = [f"method={','.join(methods)}", f"attack={','.join(attacks)}", f"seed={','.join(map(str, seeds))}"]
    alone, hosts, marks = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        swept = bench(Path(name), "-m", *axes)
        together = trainings(Path(name))
    # Attacks innermost: every fifth of the 48 holds every method and every attack.
    sample = sorted(cells, key=lambda cell: (cell[0], cell[2], cell[1]))[:: args.every]
    for method, attack, seed in sample:
        with tempfile.TemporaryDirectory() as name:
            alone += bench(Path(name), f"method={method}", f"attack={attack}", f"seed={seed}")
            made = trainings(Path(name))
            hosts, marks = hosts + made[0], marks + made[1]
    times = len(cells) / len(sample)
    alone, hosts, marks = alone * times, round(hosts * times), round(marks * times)
    print(f"{len(cells)} cells: one sweep {swept:.1f} s, each from nothing {alone:.1f} s in all")
    print(f"trained: {together[0]} hosts and {together[1]} marks; from nothing {hosts} and {marks}", flush=True)
    goal = f"<= {len(seeds) * (1 + len(methods))}"
    lines = [
        compare.Ratio("sweep", "cells from nothing", round(alone / swept, 3), 0.0, None if args.quick else ">= 4"),
        compare.Ratio("trainings of the sweep", "count", sum(together), 0.0, goal),
        compare.Ratio("trainings from nothing", "count", hosts + marks, 0.0),
    ]
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
