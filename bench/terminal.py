"""What a run prints: progress on stderr, one table on stdout that fits 80 columns and narrower terminals.

Progress is plain lines. Where stderr is a terminal, a line with elapsed and remaining time is below them for whatever
takes more than a second.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import metrics
from bench.types import Row

if TYPE_CHECKING:
    from rich.table import Table

# progress(what, total) -> a context whose value is called after each of `total` steps (None: nobody knows how many).
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def unseen(what: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
    """The `Progress` of a caller that wants none shown."""
    return contextlib.nullcontext(_nothing)


def _nothing() -> None:
    pass


def animated() -> bool:
    """Whether a line on stderr can be redrawn: a terminal, and not one that only prints."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


@contextlib.contextmanager
def live(prefix: str = "") -> Iterator[tuple[Callable[[str], None], Progress]]:
    """(say, progress) of one job, stages shown as `prefix` and their names; plain `say` and `unseen` off a terminal.

    Steps are counted where they are made and looked at once a second, by a thread. The cursor is never hidden, so
    that however a run ends, it is there.
    """
    if not animated():
        yield say, unseen
        return
    from rich import progress as rich
    from rich.console import Console

    class Steady(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    class Stages(rich.Progress):
        def get_renderables(self) -> Iterator[Table]:
            stages = self.tasks
            for stage in stages:
                with contextlib.suppress(KeyError):  # it has just ended
                    self.update(stage.id, completed=stage.fields["steps"][0])
            yield self.make_tasks_table([stage for stage in stages if (stage.elapsed or 0) >= 1])

    @contextlib.contextmanager
    def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
        steps = [0]

        def step() -> None:
            steps[0] += 1

        stage = stages.add_task(f"{prefix}{what}", total=total, steps=steps)
        try:
            yield step
        finally:
            stages.remove_task(stage)

    console = Steady(file=sys.stderr, highlight=False, markup=False, soft_wrap=True)
    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(20),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left:"),
        rich.TimeRemainingColumn(),
    )
    # Speed is taken over all looks that rich keeps, for steps may be minutes apart. What is printed on stderr by
    # anybody appears above the lines; stdout is left alone, it may be a file.
    stages = Stages(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=1,
        speed_estimate_period=24 * 3600,
        redirect_stdout=False,
    )
    with stages:
        yield lambda line: console.print(line, soft_wrap=True), progress


def table(
    rows: list[Row],
    goal: str,
    alpha: float,
    max_damage: float,
    boundary: float | None = None,
    controls: dict[str, Any] | None = None,
) -> None:
    """Rows of one run on stdout; `boundary` is the p-value of the method's own paper, if it has one, `controls` what
    the random keys did (bench.controls)."""
    from rich.console import Console

    first = rows[0]
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
    known = {**(controls or {}), "alpha": alpha}
    claims = any(r.claim_ber is not None for r in rows)
    # No digit is ever cut off: first knobs are broken into lines, then the p-values go, which follow from the BER.
    for gap, wrap, p_values in ((1 if claims else 2, False, True), (1, True, True), (1, True, False)):
        grid = _grid(rows, known, goal, max_damage, gap, wrap, p_values)
        if console.measure(grid, options=console.options.update_width(1000)).minimum <= console.width:
            break
    console.print(f"{first.method} on {first.model}, {first.data}, seed {first.seed}", style="bold")
    console.print(grid, crop=False)
    for line in notes(rows, goal, alpha, boundary, controls):
        console.print(line, style="dim", soft_wrap=False)


def pictures(numbers: list[dict[str, Any]], seed: int, figure: Path | None) -> None:
    """What was measured of each suspect's outputs (bench.readings), and where their figure is."""
    from rich.console import Console

    from bench import readings, tables

    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
    console.print()
    tables.show(readings.table(numbers, seed), console)
    console.print(readings.LEGEND, style="dim")
    if figure is not None:
        print(figure)


def _grid(
    rows: list[Row], known: dict[str, Any], goal: str, max_damage: float, gap: int, wrap: bool, p_values: bool
) -> Table:
    """Rows as a table with `gap` blanks between columns; `known`: what a verdict needs beside the row.

    `wrap`: the first column, each knob once, may be broken into lines. Without `p_values` their columns are left out.
    """
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    name = next((r.utility_name for r in rows if r.utility_name), "utility")
    claims = any(r.claim_ber is not None for r in rows)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    grid.add_column(Text(rows[0].attack), no_wrap=not wrap, overflow="fold")
    measured = ["BER", "log10 p", *(("claim", "log10 p") if claims else ())]
    for column in ("strength", *(m for m in measured if p_values or m != "log10 p"), name, "damage"):
        grid.add_column(column, justify="right")
    grid.add_column("verdict")
    for above, row in zip([None, *rows], rows, strict=False):
        hurt = None if metrics.is_control(row.knob) else metrics.damage(asdict(row))
        cells = ["" if row.strength is None else f"{row.strength:g}"]
        values = [(row.ber, row.log10_p), *([(row.claim_ber, row.claim_log10_p)] if claims else ())]
        for error, log10_p in values:
            cells += [_number(error, 3), *([_number(log10_p, 1)] if p_values else ())]
        if row.status == "ok":
            cells += [_number(row.utility, 2), _number(hurt, 2)]
        else:
            cells += ["", ""]
        verdict = metrics.verdict({**asdict(row), **known}, goal, max_damage)
        again = wrap and above is not None and above.knob == row.knob
        grid.add_row("" if again else row.knob.replace("lambda factor", "factor"), *cells, verdict)
    grid.columns[0].min_width = 9
    for column in grid.columns[1:]:
        column.no_wrap, column.min_width = True, max(len(str(cell)) for cell in column.cells)
    return grid


def notes(
    rows: list[Row],
    goal: str,
    alpha: float,
    boundary: float | None = None,
    controls: dict[str, Any] | None = None,
) -> list[str]:
    """What a reader of the table must know beside it."""
    lines = [f"{row.knob}: {row.status}: {row.error}" for row in rows if row.status != "ok"]
    bits = next((row.n_bits for row in rows if row.n_bits), None)
    if bits:
        need = metrics.matches_needed(bits, alpha)
        threshold = f"{need} of {bits} bits" if need is not None else f"more bits than {bits}"
        lines.append(f"detected: p <= {alpha:g}, {threshold}; host: unmarked, owner's key")
    if controls:
        hits, tried = controls["false_positives"], controls["random_keys"]
        low, high = (f"{100 * end:.2g}" for end in metrics.clopper_pearson(hits, tried))
        lines.append(f"control: {hits:,} of {tried:,} random keys verify (95%: {low} to {high}%)")
    if bits and boundary and (need := metrics.matches_needed(bits, boundary)) is not None:
        passed = sum(row.log10_p is not None and metrics.is_detected(row.log10_p, boundary) for row in rows)
        read = sum(row.log10_p is not None for row in rows)
        lines.append(f"the method's own boundary, {boundary:.1e} ({need} bits): {passed} of {read} rows pass")
    if goal == "forge" and bits:
        lines.append(f"key search: t tries reach p of about 1/t; alpha would need about {1 / alpha:.0e} tries")
    return lines


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
