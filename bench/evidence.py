"""What criteria are made of: runs and their points, verdicts, intervals, curves of BER against damage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from bench import metrics
from bench.plots import BEFORE
from bench.types import Row

HELD, FAILED, OPEN = "held", "failed", "inconclusive"
CHANCE = 0.5


@dataclass(frozen=True)
class Run:
    """One job of a claim: its configuration, and its rows, control and victim included."""

    config: DictConfig
    rows: list[Row]

    @property
    def unit(self) -> tuple[str, int]:
        """What two variants are paired by: network and seed."""
        return self.rows[0].model, self.rows[0].seed

    def choice(self, key: str) -> Any:
        """What was chosen for a group (`method`) or an option (`method.pool`)."""
        named = key in ("method", "attack", "model", "data")
        return getattr(self.rows[0], key) if named else OmegaConf.select(self.config, key)

    @property
    def victim(self) -> Row:
        return next(row for row in self.rows if row.knob == "none")

    @property
    def points(self) -> list[Row]:
        """What the attack made, as far as bits were read from it."""
        return [row for row in self.rows if row.knob not in BEFORE and row.status == "ok" and row.ber is not None]


@dataclass(frozen=True)
class Finding:
    """A verdict, and the numbers and the interval that it rests on, as a sentence."""

    verdict: str
    text: str


def joint(verdicts: Iterable[str]) -> str:
    """All have to hold; one that fails is enough to fail."""
    found = set(verdicts)
    return FAILED if FAILED in found else HELD if found == {HELD} else OPEN


def together(findings: list[Finding]) -> Finding:
    return Finding(joint(f.verdict for f in findings), "; ".join(f.text for f in findings))


def worst(found: list[tuple[float, Finding]]) -> Finding:
    """Findings of several strengths, each with a size: what they amount to, with the words of the worst, the last of
    equals."""
    order = (HELD, OPEN, FAILED)
    finding = max(reversed(found), key=lambda item: (order.index(item[1].verdict), item[0]))[1]
    text = finding.text + (f", the worst of {len(found)} strengths" if len(found) > 1 else "")
    return Finding(joint(f.verdict for _, f in found), text)


def where(runs: list[Run], key: str, value: Any) -> list[Run]:
    return [run for run in runs if run.choice(key) == value]


def mean_ber(run: Run) -> float:
    """Over the points with a strength; an overwriting without training, say, is none."""
    values = [row.ber for row in run.points if row.strength is not None]
    return float(np.mean(values)) if values else 0.0


def by_unit(runs: list[Run]) -> list[Run]:
    return list({run.unit: run for run in runs}.values())


def grouped(
    runs: list[Run], counts: Callable[[Row], bool] = lambda row: True
) -> dict[tuple[str, float | None], list[tuple[Run, Row]]]:
    """(knob, strength) -> the rows made there, with their runs."""
    found: dict[tuple[str, float | None], list[tuple[Run, Row]]] = {}
    for run in runs:
        for row in run.points:
            if counts(row):
                found.setdefault((row.knob, row.strength), []).append((run, row))
    return found


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """(mean, low, high) of the 95% t interval; all real numbers for a single value."""
    mean, half = metrics.t_interval(values)
    half = np.inf if half is None else half
    return mean, mean - half, mean + half


def wrong_bits(row: Row) -> float:
    return row.ber * row.n_bits


def number(strength: float | None) -> str:
    return "" if strength is None else f"{strength:g}"


def percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f}%, {100 * low:.1f} to {100 * high:.1f}"


def envelope(run: Run, knobs: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(damage [p] rising from 0, BER [p]): the worst for the owner that an attacker gets for at most so much damage.

    The victim itself is the first point. Damage below 0 counts as none, and a BER above one half as one half: a mark
    that reads as chance cannot be hurt any more.
    """
    points = [row for row in run.points if knobs is None or row.knob in knobs]
    pairs = [(0.0, min(run.victim.ber, CHANCE))]
    pairs += [(max(0.0, metrics.damage(asdict(row)) or 0.0), min(row.ber, CHANCE)) for row in points]
    damage, error = np.array(sorted(pairs)).T
    error = np.maximum.accumulate(error)
    last = np.append(np.diff(damage) > 0, True)
    return damage[last], error[last]
