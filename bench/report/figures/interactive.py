"""The figures of report.html, drawn by plotly.js: plotly Figures without an id.

What was drawn from a configuration carries, as customdata, [the anchor of its provenance, what hovering says].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from bench.report.figures.charts import Axis, Chart, Level, Panel, Series
from bench.report.style import GREY, KINDS, RULE, Look

SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"}
SYMBOLS |= {"X": "x", "*": "star"}
DASH = {"-": "solid", "--": "dash", ":": "dot"}
LINE = {"gridcolor": RULE, "linecolor": "#888", "zeroline": False, "showline": True, "automargin": True}
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"}
FONT |= {"size": 12, "color": "#222"}
Anchors = Mapping[tuple, str]  # the id of a configuration's provenance, by words.CELL


def _clear(colour: str, alpha: float) -> str:
    """#rrggbb as CSS, seen through."""
    return f"rgba({','.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))},{alpha:g})"


def _html(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _line(look: Look, width: float = 2.0) -> dict[str, Any]:
    dash = look.dash
    dash = DASH[dash] if isinstance(dash, str) else ",".join(f"{width * x:g}px" for x in dash[1])
    return {"color": look.colour, "width": width, "dash": dash}


def _marker(look: Look, size: float = 8, is_open: Sequence[bool] = (False,)) -> dict[str, Any]:
    faces = ["white" if hollow else look.colour for hollow in is_open]
    edge = {"color": look.colour, "width": 1.5} if any(is_open) else {"color": "white", "width": 0.8}
    same = len(set(faces)) == 1
    return {"symbol": SYMBOLS[look.marker], "size": size, "color": faces[0] if same else faces, "line": edge}


def _said(told: str, about: tuple, anchors: Anchors) -> list[str]:
    """customdata of one point: hovering names it in bold."""
    head, _, rest = _html(told).partition("<br>")
    return [anchors.get(about, ""), f"<b>{head}</b><br>{rest}"]


def _hover(told: Sequence[str], about: Sequence[tuple], anchors: Anchors) -> dict[str, Any]:
    custom = [_said(*one, anchors) for one in zip(told, about, strict=True)]
    return {"customdata": custom, "hovertemplate": "%{customdata[1]}<extra></extra>"}


def _id(name: str, k: int) -> str:
    """plotly's name of the k-th axis: the first has no number."""
    return f"{name}{k if k > 1 else ''}"


def chart(figure: Chart, anchors: Anchors) -> go.Figure:
    """Panels and legend; the page has the title."""
    data, layout = _entries(figure), {"shapes": [], "annotations": []}
    across, down = _spans(figure.widths, 0.02), _spans([1.0] * len(figure.panels), 0.06)[::-1]
    for i, panels in enumerate(figure.panels):
        for j, panel in enumerate(panels):
            k, last = i * len(panels) + j + 1, i == len(figure.panels) - 1
            x = _axis(panel.x, last) | {"domain": across[j], "anchor": _id("y", k)}
            y = _axis(panel.y, j == 0) | {"domain": down[i], "anchor": _id("x", k)}
            x |= {"side": "top", "showgrid": False, "showline": False} if panel.boxes else {}
            y |= {"showline": not panel.boxes, "showgrid": not panel.boxes and not any(s.texts for s in panel.series)}
            layout |= {_id("xaxis", k): x, _id("yaxis", k): y}
            traces = [_boxes(panel, anchors)] if panel.boxes else []
            for series in panel.series:
                look = figure.looks[series.label]
                if series.joined == "bars":
                    right, x["range"] = panel.x.ends[1], _widened(panel.x.ends)
                    traces += _bars(series, look, anchors, right)
                else:
                    traces += _series(series, look, anchors)
            data += [trace | {"xaxis": _id("x", k), "yaxis": _id("y", k)} for trace in traces]
            layout["shapes"] += [_line_of(level, k) for level in panel.levels]
        layout["annotations"] += _told(panels[-1], k)
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    hover = {"align": "left", "bgcolor": "white", "font": FONT}
    base = {"template": go.layout.Template(), "height": figure.size[1] + 40, "font": FONT, "legend": legend}
    base |= {"plot_bgcolor": "white", "paper_bgcolor": "white", "dragmode": False, "barmode": "overlay"}
    base |= {"margin": {"l": 60, "r": 16, "t": 28, "b": 104 if figure.looks else 40}, "hoverlabel": hover}
    return go.Figure({"data": data, "layout": base | layout})


def _widened(ends: tuple[float, float]) -> list[float]:
    """An axis with room for texts on the right."""
    return [ends[0], ends[1] + 0.3 * (ends[1] - ends[0])]


def _spans(weights: Sequence[float], gap: float) -> list[list[float]]:
    """Parts of [0, 1] in proportion to `weights`, with gaps between."""
    room, at, out = (1 - gap * (len(weights) - 1)) / sum(weights), 0.0, []
    for weight in weights:
        out.append([at, min(1.0, at + weight * room)])
        at += weight * room + gap
    return out


def _axis(axis: Axis, outer: bool) -> dict[str, Any]:
    out = LINE | ({"title": {"text": _html(axis.title), "standoff": 6}} if outer else {"showticklabels": False})
    out |= {} if axis.ends is None else {"range": [*axis.ends]}
    if axis.ticks is not None:
        out |= {"tickvals": [at for at, _ in axis.ticks], "ticktext": [_html(name) for _, name in axis.ticks]}
    return out


def _entries(figure: Chart) -> list[dict[str, Any]]:
    """The legend: traces without a point."""
    none: dict[str, Any] = {"x": [None], "y": [None]}
    out: list[dict[str, Any]] = []
    for label, look in figure.looks.items():
        entry = {**none, "name": escape(figure.entry(label)), "legendgroup": label}
        if "bars" in figure.joined:
            out.append({"type": "bar", "marker": _face(look), **entry})
        else:
            mode = "lines+markers" if figure.joined else "markers"
            out.append({"type": "scatter", "mode": mode, "line": _line(look), "marker": _marker(look), **entry})
    spot = {"type": "scatter", "mode": "markers", "hoverinfo": "skip", **none}
    if figure.note:
        grey = _marker(Look(GREY, "o", "-", ""), is_open=[True])
        out.append(spot | {"marker": grey, "name": escape(figure.note)})
    for kind in figure.kinds:
        square = {"symbol": "square", "size": 12, "color": kind.back, "line": {"color": "#BBB", "width": 1}}
        out.append(spot | {"marker": square, "name": kind.meaning})
    return out


def _series(s: Series, look: Look, anchors: Anchors) -> list[dict[str, Any]]:
    """The band, the seeds, the line of means."""
    base = {"type": "scatter", "showlegend": False, "legendgroup": s.label}
    out: list[dict[str, Any]] = []
    if s.band:
        band = [one for one in zip(s.x, *s.band, strict=True) if one[1] == one[1]]
        around = {"x": [x for x, *_ in [*band, *band[::-1]]]}
        around["y"] = [high for *_, high in band] + [low for _, low, _ in band[::-1]]
        fill = {"mode": "lines", "fill": "toself", "fillcolor": _clear(look.colour, 0.15), "line": {"width": 0}}
        out.append(base | around | fill | {"hoverinfo": "skip"})
    if s.seeds:
        dots = {"mode": "markers", "marker": {"size": 4, "color": _clear(look.colour, 0.6)}, "hoverinfo": "skip"}
        out.append(base | dots | {"x": s.seeds[0], "y": s.seeds[1]})
    line = _line(look, 1 if any(s.open) else 2) | {"shape": "hv" if s.joined == "steps" else "linear"}
    mode = "+".join(["lines"] * bool(s.joined) + ["markers"] * bool(s.told))
    spots = {"marker": _marker(look, 11 * s.size, s.open or (False,)), **_hover(s.told, s.about, anchors)}
    more = {"line": line} if s.joined else {}
    return [*out, base | {"x": s.x, "y": s.y, "mode": mode} | more | (spots if s.told else {"hoverinfo": "skip"})]


def _face(look: Look) -> dict[str, Any]:
    pattern = {"shape": look.hatch[:1], "fgcolor": "white", "bgcolor": look.colour, "fillmode": "overlay"}
    return {"color": look.colour, "pattern": pattern}


def _bars(s: Series, look: Look, anchors: Anchors, right: float) -> list[dict[str, Any]]:
    """The bars of one method, and their texts in a column at `right`."""
    base = {"y": s.y, "showlegend": False, "legendgroup": s.label, **_hover(s.told, s.about, anchors)}
    ends = [*zip(s.x, *s.band, strict=True)]
    error = {"array": [high - x for x, _, high in ends], "arrayminus": [x - low for x, low, _ in ends]}
    drawn = {"type": "bar", "orientation": "h", "width": s.size, "marker": _face(look), "x": s.x}
    drawn |= {"error_x": error | {"thickness": 1, "width": 3}}
    words = {"type": "scatter", "mode": "text", "text": [f" {escape(text)}" for text in s.texts], "cliponaxis": False}
    words |= {"x": [right] * len(ends)}
    words |= {"textposition": "middle right", "textfont": {"size": 10, "color": GREY}}
    return [base | drawn, base | words]


def _line_of(level: Level, k: int) -> dict[str, Any]:
    """A line across panel `k`."""
    line = {"color": level.ink, "dash": DASH[level.dash], "width": 1}
    along, at = ("y", "x") if level.upright else ("x", "y")
    ends = {f"{along}0": 0, f"{along}1": 1, f"{along}ref": f"{_id(along, k)} domain"}
    ends |= {f"{at}0": level.at, f"{at}1": level.at, f"{at}ref": _id(at, k)}
    return {"type": "line", "layer": "above" if level.upright else "below", "line": line, **ends}


def _told(panel: Panel, k: int) -> list[dict[str, Any]]:
    """The words of lines, each text once: at the right end, above the line or (limits) below; of upright ones above."""
    out: dict[str, dict] = {}
    look = {"font": {"size": 10, "color": GREY}, "bgcolor": "rgba(255,255,255,0.6)", "showarrow": False}
    x, y = _id("x", k), _id("y", k)
    for level in sorted(panel.levels, key=lambda level: (-level.at, level.text)):
        at = {"x": 1, "xref": f"{x} domain", "y": level.at, "yref": y, "xanchor": "right"}
        at |= {"yanchor": "top" if level.text.startswith("victim") else "bottom"}
        if level.upright:
            at = {"x": level.at, "xref": x, "y": 1, "yref": f"{y} domain", "yanchor": "bottom"}
        if level.text:
            out.setdefault(level.text, {"text": escape(level.text).replace("\n", " "), **at, **look})
    return [*out.values()]


def _boxes(panel: Panel, anchors: Anchors) -> dict[str, Any]:
    """The cells of a heat map."""
    shape = len(panel.y.ticks or ()), len(panel.x.ticks or ())
    z, text, custom = ([[empty] * shape[1] for _ in range(shape[0])] for empty in (None, "", ["", ""]))
    for box in panel.boxes:
        z[box.y][box.x], text[box.y][box.x] = [*KINDS].index(box.kind), _html(box.text)
        custom[box.y][box.x] = _said(box.told, box.about, anchors)
    n = len(KINDS)
    scale = [(at / n, kind.back) for i, kind in enumerate(KINDS.values()) for at in (i, i + 1)]
    look = {"colorscale": scale, "zmin": -0.5, "zmax": n - 0.5, "showscale": False, "xgap": 3, "ygap": 3}
    hover = {"hovertemplate": "%{customdata[1]}<extra></extra>", "texttemplate": "%{text}", "textfont": {"size": 11}}
    return {"type": "heatmap", "z": z, "text": text, "customdata": custom, **look, **hover}
