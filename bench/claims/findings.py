"""What criteria are made of: runs and their points, verdicts, intervals, curves of BER against damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from bench import metrics, spec
from bench.errors import ConfigError
from bench.types import Row

HELD, FAILED, OPEN = "held", "failed", "inconclusive"


@dataclass(frozen=True)
class Run:
    """One job of a claim: its configuration, and its rows, control and victim included."""

    config: DictConfig
    rows: list[Row]

    @property
    def unit(self) -> tuple[str, str, int]:
        """What two variants are paired by: network, data and seed."""
        return self.rows[0].model, self.rows[0].data, self.rows[0].seed

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
        made = (row for row in self.rows if row.knob != "none" and not metrics.is_control(row.knob))
        return [row for row in made if row.status == "ok" and row.ber is not None]


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


def mean_bers(runs: list[Run]) -> list[float] | None:
    """The mean BER of each run over the (knob, strength) that all of them have; None where they have none in common.

    An overwriting without training, say, has no strength and counts for nothing.
    """
    found = [{(r.knob, r.strength): error(r) for r in run.points if r.strength is not None} for run in runs]
    shared = [at for at in found[0] if all(at in bers for bers in found)]
    return [float(np.mean([bers[at] for at in shared])) for bers in found] if shared else None


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


def check_cells(runs: list[Run], axis: str | None) -> None:
    """Raises ConfigError, naming the option, where runs that would be averaged are not of one configuration.

    There is one for each value of the axis that is compared, attack, network and data set: all but the seed.
    """
    first: dict[tuple, Run] = {}
    for run in runs:
        cell = (str(run.choice(axis)) if axis else "", *(run.choice(key) for key in ("attack", "model", "data")))
        other = first.setdefault(cell, run)
        if other.rows[0].config_hash != run.rows[0].config_hash:
            raise ConfigError(
                f"{_differing(other, run, axis)}: a verdict is on one configuration, and never on the mean of several"
            )


def _differing(one: Run, other: Run, axis: str | None) -> str:
    """`option=value,value` of the first option in which two runs differ, apart from seeds and the axis."""
    flat = [spec.flat(OmegaConf.to_container(run.config, resolve=True)) for run in (one, other)]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        values = [options.get(key) for options in flat]
        if values[0] != values[1] and key not in ("seed", "attack.seed", axis):
            return f"{key}={values[0]},{values[1]}"
    return "the runs are of several configurations"


def enough(share: float) -> int:
    """How many marks it takes at least, of which all do as asked, to show a rate of `share` or more.

    Clopper-Pearson's lower end of n of n, which is 1 minus the upper end of 0 of n. Raises ConfigError for a share
    that none show (1) or any (0).
    """
    if not 0 < share < 1:
        raise ConfigError(f"no number of marks shows a rate of {share:g}: give one above 0 and below 1")
    return math.ceil(math.log(0.025) / math.log(share))


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """(mean, low, high) of the 95% t interval; all real numbers for a single value."""
    mean, half = metrics.t_interval(values)
    half = np.inf if half is None else half
    return mean, mean - half, mean + half


def wrong_bits(row: Row) -> float:
    return error(row) * row.n_bits


def error(row: Row) -> float:
    """The BER of the reading that the row's verdict rests on."""
    return metrics.reading(asdict(row))[0]


def mean_damage(rows: Iterable[Row]) -> str:
    """In points, for a sentence; a dash where the attacker changed the task, and there is no damage to speak of."""
    known = [hurt for row in rows if (hurt := metrics.damage(asdict(row))) is not None]
    return f"{np.mean(known):+.1f} points" if known else "–"


def number(strength: float | None) -> str:
    return "" if strength is None else f"{strength:g}"


def percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f}%, {100 * low:.1f} to {100 * high:.1f}"


def envelope(run: Run, knobs: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(damage [p] rising from 0, BER [p]): the worst for the owner that an attacker gets for at most so much damage.

    The victim itself is the first point, and a point without damage, on another task, is none. Damage below 0 counts as
    0, and a BER above that of chance as chance: a mark that reads as it cannot be hurt any more.
    """
    most = 1 - metrics.chance(run.victim.chance)
    points = [
        (metrics.damage(found := asdict(row)), metrics.reading(found)[0])
        for row in run.points
        if knobs is None or row.knob in knobs
    ]
    pairs = [(0.0, min(run.victim.ber, most))]
    pairs += [(max(0.0, hurt), min(error, most)) for hurt, error in points if hurt is not None]
    damage, error = np.array(sorted(pairs)).T
    error = np.maximum.accumulate(error)
    last = np.append(np.diff(damage) > 0, True)
    return damage[last], error[last]
