"""What a run prints: progress on stderr, one table on stdout that fits 80 columns and narrower terminals.

Progress is plain lines, none further from the next than bench.progress.PAUSE. Where stderr is a terminal, a line with
elapsed and remaining time is below them for whatever takes more than a second.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import metrics
from bench.errors import complain
from bench.progress import Progress, Say, console, spoken
from bench.types import Row

if TYPE_CHECKING:
    from rich.table import Table as Bars

    from bench.report.tables import Table


SEARCHES = ("tries", "grind")  # knobs whose strength is how many keys were tried


def say(line: str) -> None:
    """A line on stderr. A run goes on where that is full or gone."""
    complain(line)


def animated() -> bool:
    """Whether a line on stderr can be redrawn: a terminal, and not one that only prints."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


@contextlib.contextmanager
def live(prefix: str = "") -> Iterator[tuple[Say, Progress]]:
    """(say, progress) of one job, stages shown as `prefix` and their names; off a terminal, lines in plain `say`.

    Steps are counted where they are made and looked at once a second, by a thread. The cursor is never hidden, so
    that however a run ends, it is there.
    """
    if not animated():
        with spoken(say) as both:
            yield both
        return
    from rich import progress as rich
    from rich.console import Console

    class Steady(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    class Stages(rich.Progress):
        def get_renderables(self) -> Iterator[Bars]:
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

    steady = Steady(file=sys.stderr, highlight=False, markup=False, soft_wrap=True)
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
    shown = {"transient": True, "refresh_per_second": 1, "speed_estimate_period": 24 * 3600, "redirect_stdout": False}
    with Stages(*columns, console=steady, **shown) as stages:
        yield lambda line: steady.print(line, soft_wrap=True), progress


def table(
    rows: list[Row],
    goal: str,
    alpha: float,
    max_damage: float,
    own: float | None = None,
    controls: dict | None = None,
    claim: float | None = None,
) -> None:
    """Rows of one run on stdout; `own` is the p-value of the method's paper, if it has one, `controls` what
    the random keys did (bench.controls), `claim` the p-value at which an attacker's claim verifies (None: alpha)."""
    from bench.report import tables

    out = console()
    made = _rows(rows, {**(controls or {}), "alpha": alpha}, goal, max_damage)
    # First the columns move together, then knobs are broken into lines, and only then columns go below others.
    ways = [replace(made, gap=gap, room=room) for gap, room in ((2, 24), (1, 24), (1, 12))]
    tables.show(next((way for way in ways if len(tables.layout(way, out.width)[2]) == 1), ways[-1]), out)
    for line in notes(rows, goal, alpha, own, controls, claim, max_damage):
        out.print(line, style="dim", soft_wrap=False)


def writings(numbers: list[dict[str, Any]], figure: Path | None) -> None:
    """What a run's suspects write (bench.report.readings.spoken), and where their figure is."""
    from bench.report.readings import WRITING, spoken

    out = console()
    out.print()
    for name, texts in spoken(numbers):
        out.print(f"{name}:", style="bold", end=" ")
        out.print(texts[0] or "(nothing)", markup=False, highlight=False)
    out.print(WRITING, style="dim")
    if figure is not None:
        print(figure)


def pictures(numbers: list[dict[str, Any]], seed: int, figure: Path | None) -> None:
    """What was measured of each suspect's outputs (bench.report.readings), and where their figure is."""
    from bench.report import readings, tables

    out = console()
    out.print()
    tables.show(readings.table(numbers, seed), out)
    out.print(readings.LEGEND, style="dim")
    if figure is not None:
        print(figure)


def _rows(rows: list[Row], known: dict[str, Any], goal: str, max_damage: float) -> Table:
    """Rows as a table; `known`: what a verdict needs beside the row."""
    from bench.report.tables import Table

    first, name = rows[0], next((row.utility_name for row in rows if row.utility_name), "utility")
    claims = any(row.claim_ber is not None for row in rows)
    looks = any(row.auc is not None for row in rows)
    head = [first.attack, "strength", "BER", "log10 p", *["claim", "log10 p"] * claims, *["AUC", "layer"] * looks]
    head += [name, "damage", "verdict"]
    title = f"{first.method} on {first.model}, {first.data}, seed {first.seed}"
    made = Table(title, "", [("", name) for name in head], 2, right=range(1, len(head) - 1))
    for above, row in zip([None, *rows], rows, strict=False):
        found = asdict(row)
        hurt = None if metrics.is_control(row.knob) else metrics.damage(found)
        cells = [_number(metrics.reading(found)[0], 3), _number(metrics.evidence(found), 1)]
        cells += [_number(row.claim_ber, 3), _number(row.claim_log10_p, 1)] if claims else []
        cells += [_number(row.auc, 3), _number(row.layer_named, 2)] if looks else []
        cells += [_number(row.utility, 2), _number(hurt, 2)] if row.status == "ok" else ["", ""]
        knob = "" if above is not None and above.knob == row.knob else row.knob.replace("lambda factor", "factor")
        strength = "" if row.strength is None else f"{row.strength:g}"
        made.add(knob, strength, *cells, metrics.verdict({**found, **known}, goal, max_damage))
    return made


def notes(
    rows: list[Row],
    goal: str,
    alpha: float,
    boundary: float | None,
    controls: dict | None,
    claim: float | None = None,
    max_damage: float = math.inf,
) -> list[str]:
    """What a reader of the table must know beside it."""
    lines = [f"{row.knob}: {row.status}: {row.error}" for row in rows if row.status != "ok"]
    lines += unsound(rows, goal, max_damage)
    bits = next((row.n_bits for row in rows if row.n_bits), None)
    if bits:
        tests = next((row.tests for row in rows if row.tests), 1)
        chance = metrics.chance(next((row.chance for row in rows if row.chance), None))
        need = metrics.matches_needed(bits, alpha, tests, chance)
        threshold = f"{need} of {bits} bits" if need is not None else f"more bits than {bits}"
        threshold += f" (alpha shared among {tests} tests)" if tests > 1 else ""
        threshold += f" (of which {chance:.3g} match by chance)" if chance != 0.5 else ""
        lines.append(f"detected: p <= {alpha:g}, {threshold}; host: unmarked, owner's key")
    if controls:
        hits, tried = controls["false_positives"], controls["random_keys"]
        low, high = (f"{100 * end:.2g}" for end in metrics.clopper_pearson(hits, tried))
        lines.append(f"control: {hits:,} of {tried:,} random keys verify (95%: {low} to {high}%)")
    tails = next((metrics.tails(row.tests, row.committed) for row in rows if row.tests), 1)
    if bits and boundary and (need := metrics.matches_needed(bits, boundary, tails, chance)) is not None:
        found = [p for row in rows if (p := metrics.evidence(asdict(row))) is not None]
        passed, read = sum(metrics.is_detected(p, boundary) for p in found), len(found)
        lines.append(f"the method's own boundary, {boundary:.1e} ({need} bits): {passed} of {read} rows pass")
    if bits and (goal == "forge" or any(row.claim_ber is not None for row in rows)):
        lines += _claims(rows, bits, min(alpha, claim or alpha), tails)
    return lines


def unsound(rows: list[Row], goal: str, max_damage: float) -> list[str]:
    """Why nothing can be said of a run, and what to do about it: a line, or none."""
    row = next((row for row in rows if row.knob == "none" and row.status == "ok"), None)
    word = metrics.unsound(asdict(row), goal, max_damage) if row else ""
    if word == metrics.NO_HOST:
        name = row.utility_name
        why = f"the unmarked network's {name}, {row.utility_host:.4g}, is not above a blind guess's: train it longer"
    elif word == metrics.NO_MARK:
        why = "the victim does not verify before any attack: raise the epochs or the method's strength"
    elif word:
        span = f"±{row.utility_half:.3g}" if row.tested > 1 else "anything"
        why = f"{row.tested:,} tell the utility to {span} (95%), and max_damage is {max_damage:g}: take more"
    return [f"{word}: {why}"] if word else []


def _claims(rows: list[Row], bits: int, bar: float, tails: int) -> list[str]:
    """What a claim needs, and how far the search for keys came beside what chance gives: 1/t after t tries."""
    chance = min((metrics.chance(row.claim_chance) for row in rows if row.claim_ber is not None), default=0.5)
    need, work = metrics.matches_needed(bits, bar, tails, chance), metrics.work_bits(bits, bar, tails, chance)
    threshold = f"more bits than {bits}: no claim can verify" if need is None else f"{need} of {bits} bits"
    lines = [f"claims verify: p <= {bar:.1e}, {threshold}"]
    tried = [row for row in rows if row.knob in SEARCHES and row.claim_log10_p is not None and row.strength]
    if tried:
        last = max(tried, key=lambda row: row.strength)
        found = (
            f"log10 p {last.claim_log10_p:.1f} after {last.strength:g} tries, {-math.log10(last.strength):.1f} expected"
        )
        lines.append(f"key search: {found}{'' if work is None else f'; a claim takes 2^{math.floor(work)}'}")
    return lines


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
