"""Figures as plain data: what static and interactive draw.

Places on axes are linear: logarithms are taken before, and ticks say what stands where.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pandas as pd

from bench.metrics import missing
from bench.report import style
from bench.report.style import GREY, Look
from bench.report.words import BEFORE, ber, claim, configuration, interval, lines, number, unit


class Level(NamedTuple):
    """A line across a panel: where, what it is, colour, dash; `upright` ones are places of x. `brief`: what it is in a
    figure of a column's width, `means` what the legend says there."""

    at: float
    text: str
    ink: str = GREY
    dash: str = ":"
    upright: bool = False
    brief: str = ""
    means: str = ""


@dataclass
class Axis:
    """`ends` from left to right or from bottom to top, `ticks` with their names; None: as the data have it."""

    title: str
    ends: tuple[float, float] | None = None
    ticks: list[tuple[float, str]] | None = None


@dataclass
class Series:
    """Points of one method. `joined`: "" (not at all), "straight", "steps" or "bars" from 0 to x (nan: none); `open`:
    markers without filling; `size` of markers against the usual, or how thick bars are; `band`: intervals (of y, bars'
    of x), low and high; `seeds`: x and y of single ones; `texts` behind bars. Of each point, what it says and whose it
    is (words.CELL)."""

    label: str
    x: list[float]
    y: list[float]
    told: list[str] = field(default_factory=list)
    about: list[tuple] = field(default_factory=list)
    joined: str = ""
    open: Sequence[bool] = ()
    size: float = 1.0
    band: tuple[list[float], list[float]] | None = None
    seeds: tuple[list[float], list[float]] | None = None
    texts: Sequence[str] = ()


class Box(NamedTuple):
    """A cell of a heat map: column, row, kind of outcome, text; what it says and whose it is."""

    x: int
    y: int
    kind: str
    text: str
    told: str
    about: tuple


@dataclass
class Panel:
    x: Axis
    y: Axis
    series: list[Series] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


@dataclass
class Chart:
    """Rows of panels: those below one another share x, those beside one another y. `looks` in the order of the legend,
    `bad`: a word for each label of which nothing can be said, `note`: what an open marker is; `size` in 1/100 inch;
    `name` is its file's."""

    name: str
    title: str
    looks: dict[str, Look]
    bad: dict[str, str]
    panels: list[list[Panel]]
    size: tuple[float, float]
    widths: Sequence[float] = (1.0,)
    note: str = ""

    def entry(self, label: str) -> str:
        """A label as the legend has it."""
        return f"{label} ({self.bad[label]})" if label in self.bad else label

    @property
    def joined(self) -> set[str]:
        """How any points are joined."""
        return {s.joined for row in self.panels for panel in row for s in panel.series} - {""}

    @property
    def kinds(self) -> list[style.Kind]:
        """The kinds of outcome that occur."""
        used = {box.kind for row in self.panels for panel in row for box in panel.boxes}
        return [kind for name, kind in style.KINDS.items() if name in used]


def tabled(figure: Chart, most: int) -> Chart:
    """A heat map with rows as columns, `most` beside one another: attacks below, methods beside. Any other figure is as
    it was."""
    panel = figure.panels[0][0]
    if not panel.boxes:
        return figure
    names, attacks = panel.y.ticks, panel.x.ticks
    rows = []
    for first in range(0, len(names), most):
        part = names[first : first + most]
        ticks = [(at - first, lines(name.replace("\n", " "), 13)) for at, name in part]
        x, y = Axis("", (-0.5, min(most, len(names)) - 0.5), ticks), Axis("", (len(attacks) - 0.5, -0.5), attacks)
        boxes = [box._replace(x=box.y - first, y=box.x) for box in panel.boxes if first <= box.y < first + most]
        rows.append([Panel(x, y, boxes=boxes)])
    return replace(figure, panels=rows)


def squash(x: float, scale: float) -> float:
    """Linear up to ±scale, logarithmic beyond: a decade is as long as the linear part."""
    return x if not abs(x) > scale else math.copysign(scale * (1 + math.log10(abs(x) / scale)), x)


def _told(p: Any) -> str:
    """What an aggregated point says: the words of the tables; the first line is its name."""
    at = f"{p.knob} {number(p.strength)}" if p.knob not in BEFORE else "untouched"
    text = [f"{p.method_label}, {p.attack_label}", f"{at}: {p.verdict}", f"BER {ber(p)}"]
    text += [] if missing(p.claim_ber) else [f"claim BER {claim(p)}"]
    text.append(f"{p.utility_name} {interval(p.utility, p.utility_half, p.utility_name)}")
    if not missing(p.damage):
        text.append(f"damage {interval(p.damage, p.damage_half, p.utility_name)} {unit(p.utility_name)[0]}")
    return "\n".join([*text, f"{p.n} seed{'s' * (p.n > 1)}"])


def points(label: str, p: pd.DataFrame, x: Iterable[float], y: Iterable[float], **more: Any) -> Series:
    told, about = [_told(q) for q in p.itertuples()], [configuration(q) for q in p.itertuples()]
    return Series(label, [*x], [*y], told, about, **more)
