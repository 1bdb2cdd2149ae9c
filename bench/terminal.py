"""What a run prints: progress lines on stderr, one table on stdout that fits 80 columns."""

from __future__ import annotations

import sys
from typing import Any

from bench import metrics
from bench.types import Row


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    first = rows[0]
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
    name = next((r.utility_name for r in rows if r.utility_name), "utility")
    claims = any(r.claim_ber is not None for r in rows)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1 if claims else 2, 0, 0))
    grid.add_column(Text(first.attack), no_wrap=True)
    for column in ("strength", "BER", "log10 p", *(("claim", "log10 p") if claims else ()), name, "damage"):
        grid.add_column(column, justify="right")
    grid.add_column("verdict")
    for row in rows:
        hurt = metrics.damage(asdict(row)) if row.knob != "host" else None
        strength = "" if row.strength is None else f"{row.strength:g}"
        cells = [strength, _number(row.ber, 3), _number(row.log10_p, 1)]
        if claims:
            cells += [_number(row.claim_ber, 3), _number(row.claim_log10_p, 1)]
        if row.status == "ok":
            cells += [_number(row.utility, 2), _number(hurt, 2)]
        else:
            cells += ["", ""]
        verdict = metrics.verdict({**asdict(row), **(controls or {}), "alpha": alpha}, goal, max_damage)
        grid.add_row(row.knob.replace("lambda factor", "factor"), *cells, verdict)
    console.print(f"{first.method} on {first.model}, {first.data}, seed {first.seed}", style="bold")
    console.print(grid)
    for line in notes(rows, goal, alpha, boundary, controls):
        console.print(line, style="dim", soft_wrap=False)


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
