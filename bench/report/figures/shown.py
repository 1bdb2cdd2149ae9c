"""Every figure of the report, described once as plain data (charts): what static and interactive draw.

Utility in its task's unit (accuracy: percent), BER in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import pandas as pd

from bench import metrics
from bench.metrics import missing
from bench.report import cost, style
from bench.report.content import Content
from bench.report.figures.charts import Axis, Box, Chart, Level, Panel, Series, points, squash
from bench.report.figures.curves import curves, levels
from bench.report.threats import HOLDS
from bench.report.words import BEFORE, configuration, interval, knob, lines, natural, number, places, unit

DAMAGES = (0, 1, 2, 5, 10, 20, 50, 100)
EVIDENCE = (0, 3, 6, 9, 30, 100, 300, 1000)


def _here(content: Content, model: str, data: str) -> dict[str, str]:
    """Labels of one model and data of which nothing can be said."""
    return {label: word for (label, *at), word in content.unsound.items() if at == [model, data]}


def _at(frame: pd.DataFrame, model: str, data: str) -> pd.DataFrame:
    return frame[(frame["model"] == model) & (frame["data"] == data)]


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
        knobs = {name: knob(name, content.knobs.get(made["attack"].iloc[0], {})) for name in set(made["knob"])}
        yield _forged(made, title, bad) if forged else curves(begun, made, seeds[at], title, bad, knobs)


def _forged(made: pd.DataFrame, title: str, bad: dict[str, str]) -> Chart:
    """The evidence of each forged claim, -log10 p, a line per way of forging; filled: it passes."""
    looks, made = style.looks(made), made.dropna(subset=["claim_log10_p"])
    ways = [*dict.fromkeys(zip(made["knob"], made["strength"].fillna(-1.0), strict=True))]
    most = 1.6 * max(10.0, -made["claim_log10_p"].min())
    ticks = [(squash(at, 10), str(at)) for at in EVIDENCE if at <= most]
    names = [(float(i), knob if at < 0 else f"{knob} ({number(at)})") for i, (knob, at) in enumerate(ways)]
    x = Axis("Evidence of the claim, −log₁₀ p", (-0.4, squash(most, 10)), ticks)
    panel = Panel(x, Axis("", (len(ways) - 0.5, -0.5), names))
    for nth, label in enumerate(looks):
        p = made[made["method_label"] == label]
        aside = 0.7 * ((nth + 0.5) / len(looks) - 0.5)
        at = [ways.index(way) + aside for way in zip(p["knob"], p["strength"].fillna(-1.0), strict=True)]
        evidence = [squash(-v, 10) for v in p["claim_log10_p"]]
        panel.series.append(points(label, p, evidence, at, open=[*(p["claim_detected"] != 1)]))
    for bar in sorted(made["bar"].unique()):
        panel.levels.append(Level(squash(-math.log10(bar), 10), f"needed: 2^−{-math.log2(bar):.0f}", upright=True))
    size = (640, 180 + 17 * len(ways) * (1 + len(looks)))
    return Chart(title, title, looks, bad, [[panel]], size, note="open: not accepted")


def _damage(values: Iterable[float], limit: float, names: pd.Series) -> Axis:
    """The axis of damage: linear up to the limit, logarithmic beyond."""
    finite, scale = [v for v in values if not missing(v)], max(limit, 1.0)
    low, high = min([-1.0, *finite]) * 1.1, max([2 * limit, *finite]) * 1.2
    ends = squash(low, scale), squash(high, scale)
    ticks = sorted({limit, *(at for at in (*(-at for at in DAMAGES), *DAMAGES) if low <= at <= high)})
    words = " or ".join(dict.fromkeys(unit(name)[0] for name in names.dropna()))
    title = f"Damage ({words}; dotted: the most a success may cost)"
    return Axis(title, ends, [(squash(at, scale), f"{at:g}".replace("-", "−")) for at in ticks])


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
    x = _damage([*(mean + half.fillna(0)), *(mean - half.fillna(0))], limit, block["utility_name"])
    chart = _barred(titles, block, names, x, bad, scale)
    chart.panels[0][0].levels.append(Level(squash(limit, scale), "", upright=True))
    return chart


def _barred(
    titles: tuple[str, str], p: pd.DataFrame, names: list[str], x: Axis, bad: dict[str, str], scale: float
) -> Chart:
    """Horizontal bars, `names` below one another, a bar per method each: columns name, mean, half, text, told of `p`.

    The texts stand right of them, below one another, where no line runs.
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
    x = Axis(f"Fidelity: {said} ({units})", (min(ends) - 0.1 * room, max(ends) + 0.1 * room))
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
        panel = Panel(x, Axis("Bits wrong (BER)", (-0.02, top)), levels=levels(start, looks, set())[0])
        panel.levels.append(Level(squash(limit, scale), "", upright=True))
        for label in looks:
            p = block[block["method_label"] == label]
            damage, error = zip(*(corners := cost.frontier(p)), strict=True)
            steps = [squash(at, scale) for at in (*damage, far)], [*error, corners[-1][1]]
            panel.series.append(Series(label, *steps, joined="steps"))
            panel.series.append(points(label, p, [squash(at, scale) for at in p["damage"]], p["ber"], size=0.65))
        titles = _titled("tradeoff", "damage and bit error rate", content, model, data)
        yield Chart(*titles, looks, _here(content, model, data), [[panel]], (640, 460))


def heat_map(content: Content) -> Chart | None:
    """Methods by attacks, coloured by the kind of outcome, the outcome in the cell; None where there is no mark."""
    cells = content.cells[content.cells["method"] != "none"]
    attacks = [attack for attack in content.attacks if attack in set(cells["attack_label"])]
    rows = set(cells[["model", "data", "method_label"]].itertuples(index=False, name=None))
    rows = sorted(rows, key=lambda at: [*map(natural, at)])
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
