"""Side by side: each case and its baseline in turn, in rotated order, and the table of their ratios.

A shared machine's speed wanders by 10% within minutes and favours whoever comes first: so each round times every
case once, each round starts with another one, and a ratio is taken within its round. What is reported is the median
over rounds; `spread` is half the distance between the quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

# This checkout's bench, wherever another may be installed.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import bench  # noqa: E402, F401 (before torch: it sets how OpenMP waits)


@dataclass(frozen=True)
class Ratio:
    """One line: `ratio` of case to baseline (or a figure in that unit), what was asked and whether it was met.

    goal: `>= x` or `<= x`, None where nothing was asked.
    """

    case: str
    baseline: str
    ratio: float
    spread: float
    goal: str | None = None

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        sign, bound = self.goal.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def arguments(doc: str | None, *more: tuple[str, dict]) -> argparse.Namespace:
    """The options that every script here has, and its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute, for a first look")
    parser.add_argument("--json", metavar="FILE", help="write the lines there as well")
    parser.add_argument("--rounds", type=int, help="timings of each case (at least 5 unless --quick)")
    for name, options in more:
        parser.add_argument(name, **options)
    return parser.parse_args()


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of one call, everything on the device finished."""
    import torch

    def settle() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    settle()
    started = time.perf_counter()
    function()
    settle()
    return time.perf_counter() - started


def alternate(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """`rounds` measurements of each case, in turn; one more before, which is not kept."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for name in names:
        cases[name]()
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(cases[name]())
    return found


def compared(case: str, baseline: str, values: list[float], others: list[float], goal: str | None = None) -> Ratio:
    """The median of values[i] / others[i]."""
    return summed(case, baseline, [v / o for v, o in zip(values, others, strict=True)], goal)


def summed(case: str, unit: str, values: list[float], goal: str | None = None) -> Ratio:
    """The median of figures that are no ratios (seconds), or of ratios made already."""
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Ratio(case, unit, round(quarters[1], 4), round((quarters[2] - quarters[0]) / 2, 4), goal)


def machine(device: str = "cpu") -> str:
    """Processor, threads and versions, for the line above the table."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    if device != "cpu":
        name = f"{torch.cuda.get_device_name()} ({name})"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {torch.get_num_threads()} threads, {versions}, {time.strftime('%Y-%m-%d')}"


def show(lines: list[Ratio], where: str, path: str | None) -> None:
    """The table on the terminal, and the JSON list."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("case", "against", "ratio", "±", "goal", "met"):
        table.add_column(name, justify="right" if name in ("ratio", "±") else "left")
    for line in lines:
        met = {True: "yes", False: "NO", None: ""}[line.met]
        table.add_row(line.case, line.baseline, f"{line.ratio:.3f}", f"{line.spread:.3f}", line.goal or "", met)
    console.print(where, soft_wrap=True)
    console.print(table)
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump([asdict(line) | {"met": line.met} for line in lines], file, indent=1)
            file.write("\n")
