"""The report's figures as files, drawn by matplotlib. No pyplot: figures leave no global state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from bench.report.content import Content
from bench.report.figures import shown
from bench.report.figures.shown import Axis, Chart, Level, Panel, Series
from bench.report.style import GREY, KINDS, STYLE, Look
from bench.report.words import lines
from bench.store.files import published

# Formats and their metadata: no date, so that the same rows give the same bytes.
FORMATS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def draw(content: Content, out: Path, formats: Sequence[str]) -> list[Path]:
    """Write all figures: one per attack (and model, data), and what compares methods and attacks."""
    written: list[Path] = []
    with matplotlib.rc_context(STYLE):
        for figure in _figures(content):
            stem = re.sub(r"[^a-z0-9.]+", "-", figure.name.lower()).strip("-")
            written += save(chart(figure), out / stem, formats)
    return written


def _figures(content: Content) -> Iterator[Chart]:
    """Without comparisons where one method met one attack only."""
    yield from shown.attacks(content)
    marked = content.cells[content.cells["method"] != "none"]
    if marked["attack_label"].nunique() > 1 or marked["method_label"].nunique() > 1:
        yield shown.heat_map(content)
    if content.costs["attack_label"].nunique() > 1 or content.costs["method_label"].nunique() > 1:
        yield from shown.threats(content)
        yield from shown.costs(content)
        yield from shown.tradeoffs(content)


def save(fig: Figure, stem: Path, formats: Iterable[str]) -> list[Path]:
    """Write one figure, whole or not at all, without a date: the same rows give the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        with published(path) as aside:
            fig.savefig(aside, format=name, dpi=150, metadata=FORMATS[name])
    return paths


def chart(figure: Chart) -> Figure:
    """Panels, title and legend."""
    fig = Figure(figsize=(figure.size[0] / 100, figure.size[1] / 100), layout="constrained")
    grid = {"sharex": "col", "sharey": "row", "squeeze": False, "width_ratios": figure.widths}
    for axes, panels in zip(fig.subplots(len(figure.panels), len(figure.widths), **grid), figure.panels, strict=True):
        for ax, panel in zip(axes, panels, strict=True):
            _panel(ax, panel, figure.looks)
            _scale(ax.xaxis, panel.x if panels is figure.panels[-1] else replace(panel.x, title=""))
            _scale(ax.yaxis, panel.y if panel is panels[0] else replace(panel.y, title=""))
        _aside(axes[-1], [level for level in panels[-1].levels if not level.upright])
    _legend(fig, figure)
    fig.suptitle(lines(figure.title, int(figure.size[0] / 7)), fontsize=10, fontweight="bold")
    return fig


def _panel(ax: Axes, panel: Panel, looks: dict[str, Look]) -> None:
    for level in panel.levels:
        line = ax.axvline if level.upright else ax.axhline
        line(level.at, color=level.ink, linestyle=level.dash, linewidth=0.8 if level.dash == "-" else 1.2, zorder=1)
        if level.upright:
            above = {"transform": ax.get_xaxis_transform(), "ha": "center", "fontsize": 7.5}
            ax.text(level.at, 1.01, level.text, color=level.ink, **above)
    for series in panel.series:
        (_bars if series.joined == "bars" else _series)(ax, series, looks[series.label])
    for box in panel.boxes:
        kind = KINDS[box.kind]
        ax.add_patch(Rectangle((box.x - 0.48, box.y - 0.46), 0.96, 0.92, color=kind.back, linewidth=0))
        ax.text(box.x, box.y, box.text, ha="center", va="center", color=kind.ink, fontsize=7.5)
    if panel.boxes:
        ax.tick_params(length=0, labeltop=True, labelbottom=False)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)


def _series(ax: Axes, s: Series, look: Look) -> None:
    if s.band:
        ax.fill_between(s.x, *s.band, color=look.colour, alpha=0.15, linewidth=0)
    if s.seeds:
        ax.plot(*s.seeds, ".", color=look.colour, markersize=2.5, alpha=0.7)
    if s.joined:
        line = {"linestyle": look.dash, "linewidth": 0.8 if any(s.open) else 1.5}
        ax.plot(s.x, s.y, color=look.colour, drawstyle="steps-post" if s.joined == "steps" else "default", **line)
    if s.told:  # corners of steps are no points
        hollow = np.resize(np.array(s.open or [False]), len(s.x))
        for some, is_open in ((~hollow, False), (hollow, True)):
            if some.any():
                ax.plot(np.array(s.x)[some], np.array(s.y)[some], linestyle="", **_marker(look, is_open, 7 * s.size))


def _marker(look: Look, is_open: bool, size: float = 6) -> dict[str, Any]:
    edge = (look.colour, 1.0) if is_open else ("white", 0.6)
    face = {"color": look.colour, "marker": look.marker, "markersize": size}
    face |= {"markerfacecolor": "white"} if is_open else {}
    return face | {"markeredgecolor": edge[0], "markeredgewidth": edge[1]}


def _bars(ax: Axes, s: Series, look: Look) -> None:
    x, (low, high) = np.array(s.x, float), np.array(s.band, float)
    face = {"color": look.colour, "hatch": look.hatch, "edgecolor": "white", "linewidth": 0}
    ax.barh(s.y, x, s.size, xerr=[x - low, high - x], error_kw={"elinewidth": 0.8, "capsize": 1.5}, **face)
    for end, y, text in zip(np.fmax(np.fmax(x, high), 0.0), s.y, s.texts, strict=True):
        at = {"textcoords": "offset points", "va": "center", "fontsize": 6.5}
        ax.annotate(text, (end, y), (3, 0), color=GREY, **at)
    ax.grid(axis="y", visible=False)


def _scale(axis: Any, what: Axis) -> None:
    """Ends, ticks and title of an axis."""
    if what.ends is not None:
        (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(what.ends)
    if what.ticks is not None:
        axis.set_ticks(*zip(*what.ticks, strict=True))
    if what.title:
        axis.set_label_text(what.title)


def _aside(ax: Axes, levels: Sequence[Level]) -> None:
    """Label horizontal lines right of the axes: those that would touch move down, equal ones merge."""
    (low, high), at, last = ax.get_ylim(), 2.0, ""
    for y, text in sorted({level[:2] for level in levels}, reverse=True):
        spot = (y - low) / (high - low)
        if text != last or at - spot > 0.1:
            at = min(spot, at - 0.035 * (2 + last.count("\n") + text.count("\n")))
            ax.text(1.02, at, text, color=GREY, fontsize=7.5, va="center", transform=ax.transAxes)
            last = text


def _legend(fig: Figure, figure: Chart) -> None:
    """Below the panels, in as many columns as there is room for."""
    handles: list[Any] = []
    for label, look in figure.looks.items():
        said = {"label": figure.entry(label)}
        if "bars" in figure.joined:
            handles.append(Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, **said))
        else:
            handles.append(Line2D([], [], linestyle=look.dash if figure.joined else "", **_marker(look, False), **said))
    if figure.note:
        handles.append(Line2D([], [], linestyle="", label=figure.note, **_marker(Look(GREY, "o", "", ""), True)))
    handles += [Patch(facecolor=kind.back, edgecolor="#BBBBBB", label=kind.meaning) for kind in figure.kinds]
    room = 4.8 * max(len(handle.get_label()) for handle in handles) + 45
    columns = min(len(handles), max(1, int(fig.get_figwidth() * 72 / room)))
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3)
