"""Every figure of the report, described once as plain data: what static and interactive draw.

Places on axes are linear: logarithms are taken here, and ticks say what stands where. Utility in its task's unit
(accuracy: percent), BER in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench import metrics
from bench.metrics import missing
from bench.report import cost, style
from bench.report.content import Content
from bench.report.style import GREY, Look
from bench.report.threats import HOLDS
from bench.report.words import BEFORE, axis, ber, claim, configuration, interval, lines, number, places, tests, unit

DAMAGES = (0, 1, 2, 5, 10, 20, 50, 100)
EVIDENCE = (0, 3, 6, 9, 30, 100, 300, 1000)


class Level(NamedTuple):
    """A line across a panel: where, what it is, colour, dash; `upright` ones are places of x."""

    at: float
    text: str
    ink: str = GREY
    dash: str = ":"
    upright: bool = False


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


def _points(label: str, p: pd.DataFrame, x: Iterable[float], y: Iterable[float], **more: Any) -> Series:
    told, about = [_told(q) for q in p.itertuples()], [configuration(q) for q in p.itertuples()]
    return Series(label, [*x], [*y], told, about, **more)


def _here(content: Content, model: str, data: str) -> dict[str, str]:
    """Labels of one model and data of which nothing can be said."""
    return {label: word for (label, *at), word in content.unsound.items() if at == [model, data]}


def _at(frame: pd.DataFrame, model: str, data: str) -> pd.DataFrame:
    return frame[(frame["model"] == model) & (frame["data"] == data)]


def _levels(start: pd.DataFrame, looks: dict[str, Look], task: set[str]) -> tuple[list[Level], list[Level]]:
    """Lines across the panels of BER and of utility (in `task`), from untouched models."""
    marked, utility = start.dropna(subset=["n_bits"]), []
    error = [Level(1 - chance, "chance", dash="--") for chance in sorted({*marked["chance"]} or {0.5})]
    for p in marked.itertuples():
        if (need := metrics.matches_needed(int(p.n_bits), p.alpha, tests(p.tests), p.chance)) is not None:
            text = f"detected below\n(α = {number(p.alpha)}, n = {p.n_bits:.0f})"
            error.append(Level(1 - need / p.n_bits, text))
    for p in start[start["utility_name"].isin(task)].dropna(subset=["utility", "utility_host"]).itertuples():
        utility.append(Level(p.utility_host, "host", dash="-"))
        if p.method != "none":
            sign, worse = ("+", p.max_damage) if metrics.falls(p.utility_name) else ("-", -p.max_damage)
            text = f"victim {sign} {p.max_damage:g} {unit(p.utility_name)[0]}"
            utility.append(Level(p.utility + worse, text, looks[p.method_label].colour))
    return [*dict.fromkeys(error)], [*dict.fromkeys(utility)]


def attacks(content: Content) -> Iterator[Chart]:
    """A figure for each attack (and model, data) that made a point of its own."""
    key, several = ["attack_label", "model", "data"], len(places(content.rows)) > 1
    good = content.points[(content.points["status"] == "ok") & ~content.points["knob"].isin(BEFORE)]
    seeds = dict(iter(content.rows[content.rows["status"] == "ok"].groupby(key, sort=False)))
    start = dict(iter(content.start.groupby(["model", "data"], sort=False)))
    for at, made in good.groupby(key, sort=False):
        if made["goal"].iloc[0] == "secrecy":
            continue  # one number, which its table has
        begun = start[at[1:]]
        begun = begun[begun["method_label"].isin(set(made["method_label"])) & (begun["knob"] == "none")]
        title, bad = ", ".join(at if several else at[:1]), _here(content, *at[1:])
        forged = made["goal"].iloc[0] == "forge" and made["claim_log10_p"].notna().any()
        yield _forged(made, title, bad) if forged else _curves(begun, made, seeds[at], title, bad)


def _curves(start: pd.DataFrame, made: pd.DataFrame, seeds: pd.DataFrame, title: str, bad: dict[str, str]) -> Chart:
    """BER above, utility below, against strength; a column per knob. `start`: untouched victims, `seeds`: rows."""
    block = pd.concat([start, made], ignore_index=True)
    looks, task = style.looks(block), set(made["utility_name"])  # the attacker may have moved to another task
    error, utility = _levels(start, looks, task)
    top = max(0.54, *made[["ber", "ber_high", "claim_ber"]].max().fillna(0)) + 0.02
    above, below = Axis("bit error rate", (-0.02, top)), Axis("\n".join(sorted(task)))
    columns, widths = [], []
    for knob in dict.fromkeys(made["knob"]):
        # On a linear axis the victim is the origin.
        knobs, scale = [knob, *(["none"] if axis(knob) == "linear" else [])], axis(knob)
        p, s = (t[t["knob"].isin(knobs)] for t in (block, seeds))
        p, s = (t.assign(x=t["strength"].fillna(1.0).where(t["knob"] != "none", 0.0)) for t in (p, s))
        log = scale == "log" and p["x"].min() > 0
        names = {x: number(x) for x in sorted(set(p["x"]))}
        if made.loc[made["knob"] == knob, "strength"].isna().all():
            names = dict(zip(names, ["before", "after"][-len(names) :], strict=True))
        p, s = (t.assign(x=np.log10(t["x"]) if log else t["x"]) for t in (p, s))
        x = Axis(lines(knob, 24) or "attack")
        x.ends = (max(names) + 0.4, min(names) - 0.4) if scale == "bits" else None
        if scale != "linear" or len(names) <= 6:
            x.ticks = [(math.log10(at) if log else at, name) for at, name in names.items()]
        column = Panel(x, above, levels=error), Panel(x, below, levels=utility)
        for i, label in enumerate(looks):
            mine, dots = (t[t["method_label"] == label] for t in (p, s))
            if (mine["knob"] == knob).any():
                mine, size = mine.sort_values("x"), max(0.5, 1 - 0.17 * i)  # markers that coincide stay visible
                column[0].series.append(_curve(label, mine.dropna(subset=["ber"]), dots, "ber", size))
                mine_, dots = (t[t["utility_name"].isin(task)] for t in (mine, dots))
                column[1].series.append(_curve(label, mine_, dots, "utility", size))
                if len(q := mine.dropna(subset=["claim_ber"])):
                    look = {"joined": "straight", "open": [True] * len(q), "size": size}
                    column[0].series.append(_points(label, q, q["x"], q["claim_ber"], **look))
        columns.append(column)
        widths.append(1.0 if len(set(p["strength"].dropna())) + len(knobs) > 2 else 0.35)
    lower = [panel for _, panel in columns]
    ends = [v for panel in lower for s in panel.series for t in (s.y, *(s.band or ()), *(s.seeds or ())[1:]) for v in t]
    ends = [v for v in [*ends, *(level.at for level in utility)] if not missing(v)]
    room = 0.06 * (max(ends) - min(ends) or 1)
    below.ends = min(ends) - room, max(ends) + room
    note = "open: attacker's own mark" if made["claim_ber"].notna().any() else ""
    size = 600 if len(widths) == 1 else 200 + 250 * sum(widths), 520
    return Chart(title, title, looks, bad, [*map(list, zip(*columns, strict=True))], size, widths, note)


def _curve(label: str, p: pd.DataFrame, seeds: pd.DataFrame, name: str, size: float) -> Series:
    """Means of one method in one panel, joined; with intervals and single seeds where there are several."""
    more: dict[str, Any] = {}
    if (p["n"] > 1).any():
        low = p["ber_low"] if name == "ber" else p[name] - p[f"{name}_half"]
        high = p["ber_high"] if name == "ber" else p[name] + p[f"{name}_half"]
        more = {"band": ([*low], [*high]), "seeds": ([*seeds["x"]], [*seeds["reading" if name == "ber" else name]])}
    return _points(label, p, p["x"], p[name], joined="straight", size=size, **more)


def _forged(made: pd.DataFrame, title: str, bad: dict[str, str]) -> Chart:
    """The evidence of each forged claim, -log10 p, a line per way of forging; filled: it passes."""
    looks, made = style.looks(made), made.dropna(subset=["claim_log10_p"])
    ways = [*dict.fromkeys(zip(made["knob"], made["strength"].fillna(-1.0), strict=True))]
    most = 1.6 * max(10.0, -made["claim_log10_p"].min())
    ticks = [(squash(at, 10), str(at)) for at in EVIDENCE if at <= most]
    names = [(float(i), knob if at < 0 else f"{knob} ({number(at)})") for i, (knob, at) in enumerate(ways)]
    x = Axis("evidence of the claim, −log₁₀ p", (-0.4, squash(most, 10)), ticks)
    panel = Panel(x, Axis("", (len(ways) - 0.5, -0.5), names))
    for nth, label in enumerate(looks):
        p = made[made["method_label"] == label]
        aside = 0.7 * ((nth + 0.5) / len(looks) - 0.5)
        at = [ways.index(way) + aside for way in zip(p["knob"], p["strength"].fillna(-1.0), strict=True)]
        evidence = [squash(-v, 10) for v in p["claim_log10_p"]]
        panel.series.append(_points(label, p, evidence, at, open=[*(p["claim_detected"] != 1)]))
    for bar in sorted(made["bar"].unique()):
        panel.levels.append(Level(squash(-math.log10(bar), 10), f"needed: 2^{math.log2(bar):.0f}", upright=True))
    size = (640, 180 + 17 * len(ways) * (1 + len(looks)))
    return Chart(title, title, looks, bad, [[panel]], size, note="open: not accepted")


def _damage(values: Iterable[float], limit: float, names: pd.Series, room: float = 1.0) -> Axis:
    """The axis of damage: linear up to the limit, logarithmic beyond; `room` for texts on the right."""
    finite, scale = [v for v in values if not missing(v)], max(limit, 1.0)
    low, high = min([-1.0, *finite]) * 1.1, max([2 * limit, *finite]) * 1.2
    left, right = squash(low, scale), squash(high, scale)
    ticks = sorted({limit, *(at for at in (*(-at for at in DAMAGES), *DAMAGES) if low <= at <= high)})
    words = " or ".join(dict.fromkeys(unit(name)[0] for name in names.dropna()))
    title = f"damage, {words} (dotted: {limit:g}, the most a success may cost)"
    return Axis(title, (left, right + (right - left) * (room - 1)), [(squash(at, scale), f"{at:g}") for at in ticks])


def _titled(name: str, title: str, content: Content, model: str, data: str) -> tuple[str, str]:
    """Name and title, with the place where there are several."""
    at = f", {model}, {data}" if len(places(content.rows)) > 1 else ""
    return name + at, title + at


def costs(content: Content) -> Iterator[Chart]:
    """Cost of removal, a figure for each model and data: a bar per method, attacks below one another."""
    for (model, data), block in content.costs.groupby(["model", "data"], sort=False):
        names = [attack for attack in content.attacks if attack in set(block["attack_label"])]
        titles = _titled("cost", "cost of removal", content, model, data)
        yield _priced(titles, block.assign(name=block["attack_label"]), names, _here(content, model, data))


def threats(content: Content) -> Iterator[Chart]:
    """The cheapest removal, a figure for each model and data: a bar per method, what the attacker has below one
    another."""
    for (model, data), block in content.threats.groupby(["model", "data"], sort=False):
        titles = _titled("threats", "cheapest removal by what the attacker has", content, model, data)
        yield _priced(titles, block.assign(name=block["holds"]), [*HOLDS], _here(content, model, data))


def _priced(titles: tuple[str, str], block: pd.DataFrame, names: list[str], bad: dict[str, str]) -> Chart:
    """Bars of damage (columns cost, half) against the limit."""
    limit, scale = float(block["limit"].max()), max(float(block["limit"].max()), 1.0)
    mean, half = (pd.to_numeric(block[name]) for name in ("cost", "half"))
    told = [f"{c.method_label}, {c.name}\n{c.text}" for c in block.itertuples()]
    block = block.assign(told=told, mean=mean, half=half)
    x = _damage([*(mean + half.fillna(0)), *(mean - half.fillna(0))], limit, block["utility_name"], room=1.3)
    chart = _barred(titles, block, names, x, bad, scale)
    chart.panels[0][0].levels.append(Level(squash(limit, scale), "", upright=True))
    return chart


def _barred(
    titles: tuple[str, str], p: pd.DataFrame, names: list[str], x: Axis, bad: dict[str, str], scale: float
) -> Chart:
    """Horizontal bars, `names` below one another, a bar per method each: columns name, mean, half, text, told of `p`.

    The text stands where bar and interval end: "never" where there is no bar.
    """
    looks = style.looks(p)
    room = 0.8 / len(looks) if p.groupby("name").size().max() > 1 else 0.0  # without a second bar: in the middle
    ticks = [(float(i), lines(name, 28)) for i, name in enumerate(names)]
    panel = Panel(x, Axis("", (len(names) - 0.5, -0.5), ticks), levels=[Level(0.0, "", dash="-", upright=True)])
    for nth, label in enumerate(looks):
        q = p[p["method_label"] == label]
        y = [names.index(name) + (room * (nth + 0.5) - 0.4 if room else 0.0) for name in q["name"]]
        ends = ([squash(at, scale) for at in end] for end in (q["mean"], q["mean"] - q["half"], q["mean"] + q["half"]))
        bars = Series(label, next(ends), y, [*q["told"]], [configuration(one) for one in q.itertuples()], "bars")
        bars.band, bars.texts, bars.size = (next(ends), next(ends)), [*q["text"]], 0.9 * room or 0.6
        panel.series.append(bars)
    row = max(15 + 16 * (len(looks) if room else 1), *(22 + 14 * name.count("\n") for _, name in ticks))
    height = 145 + len(names) * row
    return Chart(*titles, looks, bad, [[panel]], (640, height))


def fidelity(content: Content) -> Chart | None:
    """What embedding cost every method, before any attack: fidelity, with t intervals."""
    p = content.start[(content.start["method"] != "none") & (content.start["knob"] == "none")]
    p = p.dropna(subset=["fidelity"])
    if p.empty:
        return None
    text = [interval(q.fidelity, q.fidelity_half, q.utility_name, "+") for q in p.itertuples()]
    words = [content.unsound.get((q.method_label, q.model, q.data)) for q in p.itertuples()]
    text = [f"{said} ({word})" if word else said for said, word in zip(text, words, strict=True)]
    told = [f"{label}\nfidelity {said}" for label, said in zip(p["method_label"], text, strict=True)]
    name = p["method_label"] if len(places(p)) == 1 else p["model"] + ", " + p["data"]
    p = p.assign(text=text, told=told, name=name, mean=p["fidelity"], half=p["fidelity_half"])
    ends = [0.0, *(p["mean"] - p["half"].fillna(0)), *(p["mean"] + p["half"].fillna(0))]
    room = max(ends) - min(ends) or 1.0
    units = " or ".join(dict.fromkeys(unit(name)[0] for name in p["utility_name"]))
    said = "victim − host" if all(map(metrics.falls, p["utility_name"])) else "host − victim"
    x = Axis(f"fidelity: {said}, {units}", (min(ends) - 0.1 * room, max(ends) + 0.35 * room))
    return _barred(("fidelity", "fidelity"), p, [*dict.fromkeys(name)], x, {}, math.inf)


def tradeoffs(content: Content) -> Iterator[Chart]:
    """BER against damage of every point, a figure for each model and data; steps: each method's removal frontier.

    Above a method's dotted line its mark is not detected; left of the limit the model still works.
    """
    spots = cost.tradeoff(content.points)
    for model, data in places(content.costs):
        if (block := _at(spots, model, data)).empty:
            continue
        looks, limit = style.looks(block), float(block["max_damage"].max())
        scale, far = max(limit, 1.0), max(block["damage"].max(), limit)
        start = _at(content.start, model, data)
        start = start[(start["knob"] == "none") & (start["method"] != "none")]
        top = max(0.54, block["ber"].max() + 0.02)
        x = _damage(block["damage"], limit, block["utility_name"])
        panel = Panel(x, Axis("bit error rate", (-0.02, top)), levels=_levels(start, looks, set())[0])
        panel.levels.append(Level(squash(limit, scale), "", upright=True))
        for label in looks:
            p = block[block["method_label"] == label]
            damage, error = zip(*(corners := cost.frontier(p)), strict=True)
            steps = [squash(at, scale) for at in (*damage, far)], [*error, corners[-1][1]]
            panel.series.append(Series(label, *steps, joined="steps"))
            panel.series.append(_points(label, p, [squash(at, scale) for at in p["damage"]], p["ber"], size=0.65))
        titles = _titled("tradeoff", "damage and bit error rate", content, model, data)
        yield Chart(*titles, looks, _here(content, model, data), [[panel]], (640, 460))


def heat_map(content: Content) -> Chart | None:
    """Methods by attacks, coloured by the kind of outcome, the outcome in the cell; None where there is no mark."""
    cells = content.cells[content.cells["method"] != "none"]
    attacks = [attack for attack in content.attacks if attack in set(cells["attack_label"])]
    rows = sorted(set(cells[["model", "data", "method_label"]].itertuples(index=False, name=None)))
    columns = [(float(i), lines(attack, 16)) for i, attack in enumerate(attacks)]
    several = len(places(cells)) > 1
    names = [lines(label, 24) + f"\n{model}, {data}" * several for model, data, label in rows]
    y = Axis("", (len(rows) - 0.5, -0.5), [(float(i), name) for i, name in enumerate(names)])
    panel = Panel(Axis("", (-0.5, len(attacks) - 0.5), columns), y)
    for c in cells.itertuples():
        at = attacks.index(c.attack_label), rows.index((c.model, c.data, c.method_label))
        told = f"{c.method_label}, {c.attack_label} ({c.model}, {c.data})\n{c.text}"
        told += f"\n{lines(c.reason, 60)}" if c.reason else ""
        panel.boxes.append(Box(*at, c.kind, lines(c.text, 13), told, configuration(c)))
    size = max(500, 160 + 115 * len(attacks)), 140 + 50 * len(rows)
    return Chart("summary", "", {}, {}, [[panel]], size) if panel.boxes else None
