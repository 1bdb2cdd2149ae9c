"""The figures of report.html, drawn by plotly.js: the same points, words and styles as the static ones.

Every figure is a plotly Figure without an id; what was drawn from one cell carries, as customdata, [the anchor of its
provenance, what hovering says]. Utility in its task's unit (accuracy: percent), BER in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bench import cost
from bench.metrics import missing
from bench.plots import BEFORE, GREY, KINDS, axis, ber, claim, interval, levels, lines, number, places, styles, unit

SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"}
SYMBOLS |= {"X": "x", "*": "star"}
DASH = {"-": "solid", "--": "dash", ":": "dot"}
LINE = {"gridcolor": "#E6E6E6", "linecolor": "#888", "zeroline": False, "showline": True, "automargin": True}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
Anchor = Callable[[Any], str]  # the id of a point's or cell's provenance, or ""


def colour(look: Any, alpha: float = 1.0) -> str:
    """A style's colour (or a name) as CSS."""
    rgb = look["color"] if isinstance(look, dict) else look
    return rgb if isinstance(rgb, str) else f"rgba({','.join(str(round(255 * c)) for c in rgb)},{alpha:g})"


def _dash(look: Any, width: float) -> str:
    kind = look["linestyle"] if isinstance(look, dict) else look
    return DASH[kind] if isinstance(kind, str) else ",".join(f"{width * x:g}px" for x in kind[1])


def _line(look: dict[str, Any], width: float = 2.0) -> dict[str, Any]:
    return {"color": colour(look), "width": width, "dash": _dash(look, width)}


def _marker(look: dict[str, Any], size: float = 8, hollow: bool = False) -> dict[str, Any]:
    edge = {"color": colour(look), "width": 1.5} if hollow else {"color": "white", "width": 0.8}
    return {"symbol": SYMBOLS[look["marker"]], "size": size, "color": "white" if hollow else colour(look), "line": edge}


def _name(label: str, bad: Iterable[str]) -> str:
    return escape(label) + " (INVALID)" * (label in set(bad))


def squash(x: float, scale: float) -> float:
    """Linear up to ±scale, logarithmic beyond: a decade is as long as the linear part."""
    return x if abs(x) <= scale else math.copysign(scale * (1 + math.log10(abs(x) / scale)), x)


def _finish(fig: go.Figure, height: float, panels: bool = False, **more: Any) -> go.Figure:
    """Everything figures have in common; `panels`: the axes are laid out already."""
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    font = {"family": FONT, "size": 12, "color": "#222"}
    hover = {"align": "left", "bgcolor": "white", "font": {"family": FONT, "size": 12, "color": "#222"}}
    base = {"template": go.layout.Template(), "height": height, "font": font, "legend": legend, "hoverlabel": hover}
    base |= {"plot_bgcolor": "white", "paper_bgcolor": "white", "dragmode": False}
    base |= {"margin": {"l": 60, "r": 16, "t": 28, "b": 104}}
    lines = {} if panels else {"xaxis": LINE, "yaxis": LINE}
    fig.update_layout(**base | lines | more)
    return fig


def heat_map(cells: pd.DataFrame, attacks: Sequence[str], anchor: Anchor) -> go.Figure:
    """Methods by attacks, coloured by the kind of outcome, the outcome printed in the cell."""
    cells = cells[cells["method"] != "none"]
    rows = sorted(set(cells[["model", "data", "method_label"]].itertuples(index=False, name=None)))
    kinds = [*KINDS]
    at = {(c.model, c.data, c.method_label, c.attack_label): c for c in cells.itertuples()}
    z, text, custom = [], [], []
    for row in rows:
        found = [at.get((*row, attack)) for attack in attacks]
        z.append([None if c is None else kinds.index(c.kind) for c in found])
        text.append(["" if c is None else "<br>".join(escape(lines(c.text, 13)).split("\n")) for c in found])
        custom.append([["", ""] if c is None else [anchor(c), _said(c)] for c in found])
    step = 1 / len(kinds)
    scale = [(at, KINDS[kind][1]) for i, kind in enumerate(kinds) for at in (i * step, (i + 1) * step)]
    several = len(places(cells)) > 1
    names = [escape(label) + f"<br>{escape(f'{model}, {data}')}" * several for model, data, label in rows]
    look = {"colorscale": scale, "zmin": -0.5, "zmax": len(kinds) - 0.5, "showscale": False, "xgap": 3, "ygap": 3}
    hover = {"hovertemplate": "%{customdata[1]}<extra></extra>", "texttemplate": "%{text}", "textfont": {"size": 11}}
    x = ["<br>".join(escape(lines(attack, 16)).split("\n")) for attack in attacks]
    fig = go.Figure(go.Heatmap(z=z, text=text, customdata=custom, **look, **hover))
    for kind in kinds:
        if kind in set(cells["kind"]):
            spot = {"symbol": "square", "size": 12, "color": KINDS[kind][1], "line": {"color": "#BBB", "width": 1}}
            fig.add_scatter(x=[None], y=[None], mode="markers", marker=spot, name=KINDS[kind][0], hoverinfo="skip")
    fig = _finish(fig, 130 + 44 * len(rows), margin={"l": 60, "r": 8, "t": 50, "b": 40})
    ticks = {"showgrid": False, "showline": False}
    fig.update_xaxes(side="top", tickvals=[*range(len(x))], ticktext=x, range=[-0.5, len(x) - 0.5], **ticks)
    bottom = len(names) - 0.5
    fig.update_yaxes(tickvals=[*range(len(names))], ticktext=names, range=[bottom, -0.5], **ticks)
    return fig


def _said(p: Any) -> str:
    """What hovering over a cell says."""
    head = f"{p.method_label}, {p.attack_label} ({p.model}, {p.data})"
    reason = f"<br>{'<br>'.join(escape(lines(p.reason, 60)).split(chr(10)))}" if getattr(p, "reason", "") else ""
    return f"<b>{escape(head)}</b><br>{escape(p.text)}{reason}"


def _told(p: Any) -> str:
    """What hovering over an aggregated point says: the words of the tables."""
    at = f"{p.knob} {number(p.strength)}" if p.knob not in BEFORE else "untouched"
    text = [f"<b>{escape(p.method_label)}</b>, {escape(p.attack_label)}", escape(f"{at}: {p.verdict}")]
    text += [f"BER {ber(p)}"] + ([f"claim BER {claim(p)}"] if not missing(p.claim_ber) else [])
    text.append(escape(f"{p.utility_name} {interval(p.utility, p.utility_half, p.utility_name)}"))
    if not missing(p.damage):
        text.append(f"damage {interval(p.damage, p.damage_half, p.utility_name)} {unit(p.utility_name)[0]}")
    return "<br>".join([*text, f"{p.n} seed{'s' * (p.n > 1)}"])


def _custom(p: pd.DataFrame, anchor: Anchor) -> list[list[str]]:
    return [[anchor(q), _told(q)] for q in p.itertuples()]


def _xaxis(knob: str, xs: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    kind, out = axis(knob), {"title": {"text": escape(knob) or "attack", "standoff": 6}}
    if kind == "log" and min(xs) > 0:
        out |= {"type": "log"}
    if kind == "bits":
        out |= {"range": [max(xs) + 0.4, min(xs) - 0.4]}
    return out | ({"tickvals": [*xs], "ticktext": [*names]} if kind != "linear" or len(xs) <= 6 else {})


def _curve(p: pd.DataFrame, rows: pd.DataFrame, name: str, look: dict, told: list, at: dict, size: float) -> list[dict]:
    """Traces of one method in one panel: the band, the seeds, the line of means."""
    at = {"type": "scatter", "showlegend": False, **at}
    out: list[dict] = []
    if (p["n"] > 1).any():
        low = p["ber_low"] if name == "ber" else p[name] - p[f"{name}_half"]
        high = p["ber_high"] if name == "ber" else p[name] + p[f"{name}_half"]
        band = pd.DataFrame({"x": p["x"], "low": low, "high": high}).dropna()
        around = {"x": [*band["x"], *band["x"][::-1]], "y": [*band["high"], *band["low"][::-1]], "mode": "lines"}
        fill = {"fill": "toself", "fillcolor": colour(look, 0.15), "line": {"width": 0}, "hoverinfo": "skip"}
        dots = {"mode": "markers", "marker": {"size": 4, "color": colour(look, 0.6)}, "hoverinfo": "skip"}
        out += [{**around, **fill, **at}, {"x": [*rows["x"]], "y": [*rows[name]], **dots, **at}]
    look = {"mode": "lines+markers", "line": _line(look), "marker": _marker(look, size)}
    return [*out, {"x": [*p["x"]], "y": [*p[name]], **look, **_hover(told), **at}]


def _id(name: str, k: int) -> str:
    """plotly's name of the k-th axis: the first has no number."""
    return f"{name}{k if k > 1 else ''}"


def _hover(told: list) -> dict[str, Any]:
    return {"customdata": told, "hovertemplate": "%{customdata[1]}<extra></extra>"}


def curves(block: pd.DataFrame, rows: pd.DataFrame, bad: set[str], anchor: Anchor) -> go.Figure:
    """BER above, utility below, against strength; a column per knob. `rows`: the seeds' own."""
    looks = styles(block)
    ok, start = block[~block["knob"].isin(BEFORE)], block[block["knob"] == "none"]
    knobs, task = [*dict.fromkeys(ok["knob"])], set(ok["utility_name"])
    zero = {knob: ["none"] if axis(knob) == "linear" else [] for knob in knobs}  # there the victim is the origin
    block, rows = (s.assign(x=s["strength"].fillna(1.0).where(s["knob"] != "none", 0.0)) for s in (block, rows))
    traces: list[dict] = []
    for label, look in looks.items():
        entry = {"mode": "lines+markers", "line": _line(look), "marker": _marker(look), "legendgroup": label}
        traces.append({"type": "scatter", "x": [None], "y": [None], "name": _name(label, bad), **entry})
    layout: dict[str, Any] = {}
    for col, knob in enumerate(knobs):
        above, below = ({"xaxis": _id("x", k), "yaxis": _id("y", k)} for k in (col + 1, len(knobs) + col + 1))
        for i, (label, look) in enumerate(looks.items()):
            size = max(6.0, 11 - 1.5 * i)  # the first largest: markers that coincide stay visible
            p, s = (t[(t["method_label"] == label) & t["knob"].isin([knob, *zero[knob]])] for t in (block, rows))
            if not (p["knob"] == knob).any():
                continue
            p, group = p.sort_values("x"), {"legendgroup": label}
            q = p.dropna(subset=["ber"])
            traces += _curve(q, s, "ber", look, _custom(q, anchor), above | group, size)
            q, s = (t[t["utility_name"].isin(task)] for t in (p, s))
            traces += _curve(q, s, "utility", look, _custom(q, anchor), below | group, size)
            q = p.dropna(subset=["claim_ber"])
            more = {"mode": "lines+markers", "line": _line(look, 1), "marker": _marker(look, size, hollow=True)}
            more |= {"type": "scatter", "showlegend": False, **_hover(_custom(q, anchor)), **above, **group}
            traces += [{"x": [*q["x"]], "y": [*q["claim_ber"]], **more}] * bool(len(q))
        xs = sorted(set(block.loc[block["knob"].isin([knob, *zero[knob]]), "x"]))
        nameless = ok.loc[ok["knob"] == knob, "strength"].isna().all()
        names = ["before", "after"][-len(xs) :] if nameless else [number(x) for x in xs]
        width = 1 / len(knobs)
        across = {"domain": [col * width + 0.01 * (col > 0), (col + 1) * width - 0.01 * (col < len(knobs) - 1)]}
        across |= LINE | _xaxis(knob, xs, names)
        layout[_id("xaxis", col + 1)] = across | {"anchor": above["yaxis"], "title": None, "showticklabels": False}
        layout[_id("xaxis", len(knobs) + col + 1)] = across | {"anchor": below["yaxis"]}
    error, utility = levels(start, looks, task)
    named = block["utility_name"].isin(task), rows["utility_name"].isin(task)
    seen = [*block.loc[named[0], "utility"], *rows.loc[named[1], "utility"], *(y for y, *_ in utility)]
    low, high = min(v for v in seen if not missing(v)), max(v for v in seen if not missing(v))
    room, top = 0.06 * (high - low or 1), max(0.54, *ok[["ber", "ber_high", "claim_ber"]].max().fillna(0)) + 0.02
    upper = LINE | {"domain": [0.54, 1.0], "range": [-0.02, top]}
    lower = LINE | {"domain": [0.0, 0.48], "range": [low - room, high + room]}
    titles = "bit error rate", "<br>".join(map(escape, sorted(task)))
    shapes, texts = [], []
    for row, (panel, title, some) in enumerate(zip((upper, lower), titles, (error, utility), strict=True)):
        for col in range(len(knobs)):
            k = row * len(knobs) + col + 1
            own = {"title": {"text": title}} if col == 0 else {"showticklabels": False}
            layout[_id("yaxis", k)] = panel | own | {"anchor": _id("x", k)}
            shapes += [_level(y, ink, dash, k) for y, _, ink, dash in dict.fromkeys(some)]
        texts += _told_levels(some, k)
    return _finish(
        go.Figure({"data": traces, "layout": {**layout, "shapes": shapes, "annotations": texts}}), 560, panels=True
    )


def _level(y: float, ink: Any, dash: str, k: int) -> dict[str, Any]:
    """A line across panel `k`."""
    line = {"color": colour(ink), "dash": DASH[dash], "width": 1}
    ends = {"x0": 0, "x1": 1, "xref": f"{_id('x', k)} domain", "y0": y, "y1": y, "yref": _id("y", k)}
    return {"type": "line", "layer": "below", "line": line, **ends}


def _told_levels(some: list[tuple], k: int) -> list[dict[str, Any]]:
    """The words of lines at the right end of panel `k`: each text once, above its line or (limits) below."""
    out: dict[str, dict] = {}
    for y, text, *_ in sorted(dict.fromkeys(some), key=lambda level: (-level[0], level[1])):
        side = {"yanchor": "top" if text.startswith("victim") else "bottom", "xanchor": "right", "showarrow": False}
        look = {"font": {"size": 10, "color": GREY}, "bgcolor": "rgba(255,255,255,0.6)", **side}
        at = {"x": 1, "xref": f"{_id('x', k)} domain", "y": y, "yref": _id("y", k)}
        out.setdefault(text, {"text": escape(text).replace("\n", " "), **at, **look})
    return [*out.values()]


def forged(block: pd.DataFrame, bad: set[str], anchor: Anchor) -> go.Figure:
    """The evidence of each forged claim, -log10 p, a line per way of forging; filled: it passes."""
    looks, ok = styles(block), block[~block["knob"].isin(BEFORE)]
    ok = ok.assign(strength=ok["strength"].fillna(-1.0)).dropna(subset=["claim_log10_p"])
    ways = [*ok[["knob", "strength"]].drop_duplicates().itertuples(index=False, name=None)]
    fig = go.Figure()
    for nth, (label, look) in enumerate(looks.items()):
        p = ok[ok["method_label"] == label]
        y = [ways.index((q.knob, q.strength)) + 0.7 * ((nth + 0.5) / len(looks) - 0.5) for q in p.itertuples()]
        marker = _marker(look, 10, hollow=True)
        marker["color"] = [colour(look) if q.claim_detected == 1 else "white" for q in p.itertuples()]
        real = p.assign(strength=p["strength"].where(p["strength"] >= 0))
        told = _hover(_custom(real, anchor))
        x = [squash(-v, 10) for v in p["claim_log10_p"]]
        fig.add_scatter(x=x, y=y, mode="markers", marker=marker, showlegend=False, **told)
        fig.add_scatter(x=[None], y=[None], mode="markers", marker=_marker(look, 10), name=_name(label, bad))
    for alpha in sorted(block["alpha"].unique()):
        dotted = {"color": GREY, "dash": "dot", "width": 1.5}
        fig.add_vline(x=squash(-math.log10(alpha), 10), line=dotted, annotation_text=f"α = {number(alpha)}")
    most = 1.6 * max(10.0, -ok["claim_log10_p"].min())
    ticks = [tick for tick in (0, 3, 6, 9, 30, 100, 300, 1000) if tick <= most]
    fig = _finish(fig, 190 + 18 * len(ways) * (1 + len(looks)))
    title = {"text": "evidence of the claim, −log10 p<br>(open: not accepted)"}
    at = {"tickvals": [squash(t, 10) for t in ticks], "ticktext": [str(t) for t in ticks]}
    fig.update_xaxes(title=title, range=[-0.4, squash(most, 10)], **at)
    names = [escape(knob if s < 0 else f"{knob} ({number(s)})") for knob, s in ways]
    fig.update_yaxes(tickvals=[*range(len(ways))], ticktext=names, range=[len(ways) - 0.5, -0.5])
    return fig


def _damage(fig: go.Figure, values: pd.Series, limit: float, room: float = 1.0) -> None:
    """The axis of damage: linear up to the limit, logarithmic beyond; the limit as a dotted line."""
    finite, scale = values.dropna(), max(limit, 1.0)
    low, high = min([-1.0, *finite]) * 1.1, max([2 * limit, *finite]) * 1.2
    at = cost.ticks(limit, low, high)
    ends = [squash(low, scale), squash(high, scale)]
    ends[1] += (ends[1] - ends[0]) * (room - 1)
    title = {"text": f"damage, points of utility<br>(dotted: {limit:g}, the most a success may cost)"}
    fig.update_xaxes(title=title, range=ends, tickvals=[squash(x, scale) for x in at], ticktext=[f"{x:g}" for x in at])
    fig.add_vline(x=squash(limit, scale), line={"color": GREY, "dash": "dot", "width": 1.5})


def scatter(block: pd.DataFrame, start: pd.DataFrame, bad: set[str], anchor: Anchor) -> go.Figure:
    """BER against damage of every point of one model and data; lines: each method's removal frontier."""
    looks, limit = styles(block), float(block["max_damage"].max())
    scale, fig = max(limit, 1.0), go.Figure()
    for label, look in looks.items():
        p = block[block["method_label"] == label]
        corners = cost.frontier(p)
        x = [squash(d, scale) for d in (*(d for d, _ in corners), max(block["damage"].max(), limit))]
        y = [error for _, error in (*corners, corners[-1])]
        line = {"mode": "lines", "line": _line(look) | {"shape": "hv"}, "hoverinfo": "skip", "showlegend": False}
        fig.add_scatter(x=x, y=y, legendgroup=label, **line)
        told = _hover(_custom(p, anchor))
        x, spots = [squash(d, scale) for d in p["damage"]], {"mode": "markers", "opacity": 0.75}
        entry = {"name": _name(label, bad), "marker": _marker(look), "legendgroup": label}
        fig.add_scatter(x=x, y=[*p["ber"]], **entry, **told, **spots)
    fig = _finish(fig, 480)
    _damage(fig, block["damage"], limit)
    some = levels(start, looks, set())[0]
    shapes = [_level(y, ink, dash, 1) for y, _, ink, dash in dict.fromkeys(some)]  # beside the limit's
    fig.update_layout(shapes=shapes, annotations=_told_levels(some, 1))
    fig.update_yaxes(title={"text": "bit error rate"}, range=[-0.02, max(0.54, block["ber"].max() + 0.02)])
    return fig


def _bars(p: pd.DataFrame, names: Sequence[str], bad: set[str], scale: float, anchor: Anchor) -> go.Figure:
    """Horizontal bars, `names` below one another, a bar per method each: columns at (one of names), mean, half, text,
    said of `p`. The text stands where bar and interval end: "never" where there is no bar."""
    looks, traces = styles(p), []
    room = 0.8 / len(looks) if p.groupby("at").size().max() > 1 else 0.0  # without a second bar: in the middle
    for nth, (label, look) in enumerate(looks.items()):
        q = p[p["method_label"] == label]
        y = [names.index(name) + (room * (nth + 0.5) - 0.4 if room else 0.0) for name in q["at"]]
        x = [squash(mean, scale) for mean in q["mean"]]
        ends = [squash(m + h, scale) for m, h in zip(q["mean"], q["half"], strict=True)]
        lows = [squash(m - h, scale) for m, h in zip(q["mean"], q["half"], strict=True)]
        pattern = {"shape": cost.hatch(q["method"].iloc[0])[:1], "fgcolor": "white", "bgcolor": colour(look)}
        face = {"color": colour(look), "pattern": pattern | {"fillmode": "overlay"}}
        error = {"array": [b - a for a, b in zip(x, ends, strict=True)], "thickness": 1, "width": 3}
        error |= {"arrayminus": [a - b for a, b in zip(x, lows, strict=True)]}
        told = _hover([[anchor(r), r.said] for r in q.itertuples()])
        bar = {"type": "bar", "orientation": "h", "width": 0.9 * room or 0.6, "name": _name(label, bad), **told}
        traces.append(bar | {"x": x, "y": y, "marker": face, "legendgroup": label, "error_x": error})
        right = [max(0.0, *(v for v in pair if not missing(v)), 0.0) for pair in zip(x, ends, strict=True)]
        words = {"text": [f" {escape(t)}" for t in q["text"]], "textfont": {"size": 10, "color": GREY}}
        words |= {"type": "scatter", "mode": "text", "textposition": "middle right", "cliponaxis": False}
        traces.append({"x": right, "y": y, "showlegend": False, "legendgroup": label, **words, **told})
    fig = go.Figure({"data": traces})
    _finish(fig, 150 + len(names) * (14 + (16 * len(looks) if room else 16)), barmode="overlay")
    ticks = {"tickvals": [*range(len(names))], "ticktext": [escape(name) for name in names], "showgrid": False}
    fig.update_yaxes(range=[len(names) - 0.5, -0.5], **ticks)
    fig.add_vline(x=0, line={"color": "#888", "width": 1})
    return fig


def costs(block: pd.DataFrame, attacks: Sequence[str], anchor: Anchor) -> go.Figure:
    """Cost of removal of one model and data: a bar per method, "never" where there is none."""
    limit, half = float(block["limit"].max()), pd.to_numeric(block["half"])
    said = [f"<b>{escape(f'{c.method_label}, {c.attack_label}')}</b><br>{escape(c.text)}" for c in block.itertuples()]
    block = block.assign(said=said, at=block["attack_label"], mean=pd.to_numeric(block["cost"]), half=half)
    names = [attack for attack in attacks if attack in set(block["at"])]
    fig = _bars(block, names, cost.flagged(block), max(limit, 1.0), anchor)
    _damage(fig, pd.concat([block["mean"] + half.fillna(0), block["mean"] - half.fillna(0)]), limit, room=1.3)
    return fig


def fidelity(start: pd.DataFrame, bad: Mapping[tuple[str, str, str], str], anchor: Anchor) -> go.Figure:
    """host - victim of every method, untouched victims of `start`: what embedding cost, with t intervals.

    `bad` holds a word for each (method label, model, data) of which nothing can be said.
    """
    p = start[(start["method"] != "none") & (start["knob"] == "none")].dropna(subset=["fidelity"])
    text = [interval(q.fidelity, q.fidelity_half, q.utility_name, "+") for q in p.itertuples()]
    words = [bad.get((q.method_label, q.model, q.data)) for q in p.itertuples()]
    text = [f"{told} ({word})" if word else told for told, word in zip(text, words, strict=True)]
    at = p["method_label"] if len(places(p)) == 1 else p["model"] + ", " + p["data"]
    said = [f"<b>{escape(q.method_label)}</b><br>fidelity {t}" for q, t in zip(p.itertuples(), text, strict=True)]
    p = p.assign(text=text, at=at, said=said, mean=p["fidelity"], half=p["fidelity_half"])
    fig = _bars(p, [*dict.fromkeys(at)], set(), math.inf, anchor)
    ends = [0.0, *(p["mean"] - p["half"].fillna(0)), *(p["mean"] + p["half"].fillna(0))]
    room, title = max(ends) - min(ends) or 1.0, {"text": "fidelity: host − victim, points of utility"}
    fig.update_xaxes(title=title, range=[min(ends) - 0.1 * room, max(ends) + 0.35 * room])
    return fig
