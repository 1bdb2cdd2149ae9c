"""An option of the configurations on the x axis (bench.report --x): a figure for each attack."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from bench.errors import UserError
from bench.metrics import suspect
from bench.report import style
from bench.report.content import Content
from bench.report.figures.charts import Axis, Chart, Panel, Series
from bench.report.figures.curves import curve, ends, levels
from bench.report.words import BEFORE, called, lines, natural, number, places

MOST = 6  # strengths beside one another
DECADES = 16  # an axis is logarithmic from this ratio of its ends


def swept(content: Content) -> pd.DataFrame:
    """The points that were measured, under the labels without the option, with `x`, its value there as text."""
    known, begun = {}, {}
    for p in content.rows.drop_duplicates(["method_label", "attack_label", "model", "data"]).itertuples():
        place = (p.model, p.data)
        known[p.method_label, p.attack_label, *place] = p.x, p.method_swept, p.attack_swept
        begun[p.method_label, "before attack", *place] = p.x, p.method_swept, "before attack"
    if content.x.startswith("attack."):
        begun = {}  # before an attack it has no value
    points = content.points[(content.points["status"] == "ok") & (content.points["knob"] != "host")]
    keys = zip(points["method_label"], points["attack_label"], points["model"], points["data"], strict=True)
    found = [(begun | known).get(key, (None, "", "")) for key in keys]
    columns = dict(zip(("x", "method_label", "attack_label"), zip(*found, strict=True), strict=True)) if found else {}
    points = points.assign(**columns)
    return points[points["x"].notna()]


def sweeps(content: Content) -> Iterator[Chart]:
    """A figure for each attack, model and data: bit error rate and utility against the option, a column for each of up
    to MOST strengths. Raises UserError where no method was run with two of its values."""
    if content.x is None:
        return
    points, made = swept(content), 0
    several = len(places(content.rows)) > 1
    for at, block in points.groupby(["attack_label", "model", "data"], sort=False):
        if at[0] != "before attack":
            block = block[~block["knob"].isin(BEFORE)]
        if len(block) and block.groupby("method_label")["x"].nunique().max() > 1:
            made += 1
            title = ", ".join(at if several else at[:1])
            yield _chart(content, block, f"{title} by {content.x}")
    if not made:
        raise UserError(f"--x {content.x}: no method was run with two values of it in these runs")


def _chart(content: Content, block: pd.DataFrame, title: str) -> Chart:
    looks, task = style.looks(block), set(block["utility_name"])
    start = block[block["method"] != "none"].drop_duplicates("n_bits")
    error, _ = levels(start, looks, set())
    place, ticks = _places(block["x"])
    block = block.assign(x=block["x"].map(place))
    top = max(0.54, *block[["ber", "ber_high"]].max().fillna(0)) + 0.02
    above, below = Axis("Bits wrong (BER)", (-0.02, top)), Axis("\n".join(map(called, sorted(task))))
    room = 0.05 * (ticks[-1][0] - ticks[0][0])
    span = ticks[0][0] - room, ticks[-1][0] + room
    option = content.x.partition(".")[2] or content.x
    strengths = [*block[["knob", "strength"]].drop_duplicates().itertuples(index=False, name=None)]
    step = max(1.0, (len(strengths) - 1) / (MOST - 1))
    kept = [strengths[round(i * step)] for i in range(min(MOST, len(strengths)))]
    columns = []
    for knob, strength in kept:
        same = block["strength"].isna() if strength != strength else block["strength"] == strength
        p = block[(block["knob"] == knob) & same]
        what = "before attack" if knob == "none" else suspect(knob, strength)
        x = Axis(lines(f"{option} ({what})", 26), span, ticks)
        column = Panel(x, above, levels=error), Panel(x, below)
        for i, label in enumerate(looks):
            mine, size = p[p["method_label"] == label].sort_values("x"), max(0.5, 1 - 0.17 * i)
            nothing = mine[:0].assign(reading=[])
            column[0].series.append(_line(label, mine.dropna(subset=["ber"]), nothing, "ber", size))
            column[1].series.append(_line(label, mine, nothing, "utility", size))
        columns.append(column)
    below.ends = ends([panel for _, panel in columns], [], task)
    size = 600 if len(kept) == 1 else 200 + 250 * len(kept), 520
    bad = {label: word for (label, *_), word in content.unsound.items()}
    return Chart(title, title, looks, bad, [*map(list, zip(*columns, strict=True))], size, [1.0] * len(kept))


def _line(label: str, p: pd.DataFrame, nothing: pd.DataFrame, name: str, size: float) -> Series:
    return curve(label, p, nothing, name, size) if len(p) else Series(label, [], [])


def _places(texts: pd.Series) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where the values of an option stand, and the ticks: numbers by their value, words side by side."""
    values = sorted(texts.unique(), key=natural)
    try:
        numbers = [float(text) for text in values]
    except ValueError:
        at = dict(zip(values, map(float, range(len(values))), strict=True))
        return at, [(x, text) for text, x in at.items()]
    log = min(numbers) > 0 and max(numbers) / min(numbers) >= DECADES
    at = {text: math.log10(x) if log else x for text, x in zip(values, numbers, strict=True)}
    return at, [(at[text], number(x)) for text, x in zip(values, numbers, strict=True)]
