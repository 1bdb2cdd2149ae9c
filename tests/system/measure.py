"""What docs/reliability.md states, measured: `python -m tests.system.measure [--quick] [--only kills,flips] [--seed 0]`

Everything is drawn by the seed, apart from the instants of half of the kills. Prints a table; exit status 1 where a
number is not what it has to be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.system import forked

PARTS = ("kills", "writers", "flips", "configs", "odd")
QUICK = {"run": 6, "sweep": 4, "report": 4, "compact": 10, "upload": 4}  # kills
WHOLE = {"run": 50, "sweep": 40, "report": 30, "compact": 50, "upload": 30}


class Line(NamedTuple):
    """What was tried, how often, and what was found that should not be."""

    what: str
    tried: int
    wrong: int
    found: str


def _said(counts: Counter[str], *but: str) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count and name not in but)


def _kills(quick: bool, seed: int, base: Path) -> Iterator[Line]:
    from tests.system import kills

    counts = QUICK if quick else WHOLE
    for name, found in kills.measured(counts, seed, base):
        wrong = sum(found.values()) - found["kills"]
        yield Line(f"kills of a {name}", counts[name], wrong, _said(found))


def _writers(quick: bool, seed: int, base: Path) -> Iterator[Line]:
    from tests.system import writers

    found = writers.measured(4 if quick else 8, base)
    yield Line("processes on one cache", 4 if quick else 8, sum(found.values()) - found["models"], _said(found))


def _flips(quick: bool, seed: int, base: Path) -> Iterator[Line]:
    from tests.system import flips

    results = flips.measured(400 if quick else 2000, seed, base)
    total = sum(results.values(), Counter())
    silent = ", ".join(f"{name}: {found['silent']}" for name, found in results.items() if found["silent"])
    said = f"{_said(total)} in {len(results)} kinds of files{f'; silent: {silent}' if silent else ''}"
    yield Line("flipped bits", sum(total.values()), total["silent"], said)


def _configs(quick: bool, seed: int, base: Path) -> Iterator[Line]:
    from tests.system import configs

    found, wrong = configs.measured(40 if quick else 200, seed, base)
    for line in wrong:
        print(line, file=sys.stderr)
    yield Line("mutated configurations", sum(found.values()), len(wrong), _said(found))


def _odd(quick: bool, seed: int, base: Path) -> Iterator[Line]:
    from tests.system import odd_runs

    found = odd_runs.measured(20 if quick else 100, seed, base)
    yield Line("odd run files", found["files"], found["reports lost"] + found["good runs lost"], _said(found, "files"))


MEASURES: dict[str, Callable[[bool, int, Path], Iterator[Line]]] = dict(
    zip(PARTS, (_kills, _writers, _flips, _configs, _odd), strict=True)
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.system.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of it, within ten minutes on two cores")
    parser.add_argument("--only", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    forked.warm()
    begun, lines = time.monotonic(), []
    print(f"| {'what':24} | {'tried':>6} | {'wrong':>5} | {'found':60} | {'s':>5} |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="measure") as base:
        for part in args.only.split(","):
            started = time.monotonic()
            for line in MEASURES[part](args.quick, args.seed, Path(base) / part):
                took, started = time.monotonic() - started, time.monotonic()
                numbers = f"{line.tried:6,} | {line.wrong:5} | {line.found:60} | {took:5.0f}"
                print(f"| {line.what:24} | {numbers} |", flush=True)
                lines.append(line)
    wrong = any(line.wrong for line in lines)
    print(f"{'NOT' if wrong else 'all'} as it should be; seed {args.seed}, {time.monotonic() - begun:.0f} s")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
