"""Seconds from a command to its answer: help, a configuration error, a run that was done before; each in a new process.

python benchmarks/start.py [--quick] [--json FILE]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable

import compare

ROOT = compare.ROOT


def command(*words: str, code: int = 0) -> Callable[[], float]:
    """Times `python words`; anything but the expected exit status is an error."""

    def once() -> float:
        def call() -> None:
            done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != code:
                raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}: {done.stderr or done.stdout}")

        return compare.seconds(call)

    return once


def main() -> None:
    args = compare.arguments(__doc__)
    rounds = args.rounds or (3 if args.quick else 7)
    with tempfile.TemporaryDirectory() as folder:
        tiny = ("model=timm", "model.name=test_resnet", "train.epochs=1", "method=uchida", "attack=none")
        run = ("-m", "bench", *tiny, f"results_dir={folder}", "device=cpu")
        found = compare.alternate(
            {
                "help": command("-m", "bench", "--help"),
                "error": command("-m", "bench", "method=uchda", code=2),
                "cached": command(*run),  # the round that is not kept makes it
                "package": command("-c", "import bench"),
                "import": command("-c", "import torch, timm"),
            },
            rounds,
        )
    more = [c - i for c, i in zip(found["cached"], found["import"], strict=True)]
    lines = [
        compare.summed("--help", "seconds", found["help"], "<= 0.3"),
        compare.summed("method=uchda, a typo", "seconds", found["error"], "<= 0.5"),
        compare.summed("import bench", "seconds", found["package"], "<= 0.1"),
        compare.summed("import torch, timm", "seconds", found["import"]),
        compare.summed("a cached run's table", "seconds", found["cached"]),
        compare.summed("a cached run's table", "seconds above the imports", more, "<= 1"),
    ]
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
