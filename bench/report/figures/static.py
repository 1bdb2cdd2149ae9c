"""The report's figures as files, drawn by matplotlib. No pyplot: figures leave no global state.

For papers (bench.report --width) they are as wide as a column or a text, without titles, and panels that do not fit
beside one another go below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from bench.report.content import Content
from bench.report.figures import shown
from bench.report.figures.charts import Axis, Chart, Level, Panel, Series, tabled
from bench.report.figures.sweeps import sweeps
from bench.report.style import GREY, KINDS, STYLE, Look
from bench.report.words import lines
from bench.store.files import published

# Formats and their metadata: no date, so that the same rows give the same bytes.
FORMATS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


class Form(NamedTuple):
    """What a figure is drawn for: its width (inches; None: its own), its letters (pt), how many panels stand beside one
    another, the height of each, columns of a heat map, the resolution of a bitmap (dots per inch)."""

    width: float | None
    letters: float
    beside: float = 99.0
    tall: float = 0.0
    cells: int = 99
    dpi: int = 150

    def pt(self, size: float) -> float:
        """Letters smaller than the usual 9 pt; in a paper none are below 6 pt."""
        return size if self.width is None else max(6.0, size * self.letters / 9)

    @property
    def scale(self) -> float:
        """Of markers and lines."""
        return self.letters / 9


FORMS = {
    "screen": Form(None, 9.0),
    "column": Form(3.3, 7.0, 2.0, 1.05, 4, 300),
    "text": Form(5.5, 8.0, 3.5, 1.3, 7, 300),
}


def draw(content: Content, out: Path, formats: Sequence[str], width: str = "screen") -> list[Path]:
    """Write all figures: one per attack (and model, data), and what compares methods and attacks; `width`: of FORMS."""
    written: list[Path] = []
    form = FORMS[width]
    with matplotlib.rc_context(STYLE | {"font.size": form.letters}):
        for figure in _figures(content):
            stem = re.sub(r"[^a-z0-9.]+", "-", figure.name.lower()).strip("-")
            written += save(chart(figure, form), out / stem, formats, form.dpi)
    return written


def _figures(content: Content) -> Iterator[Chart]:
    """Without comparisons where one method met one attack only."""
    yield from shown.attacks(content)
    yield from sweeps(content)
    marked = content.cells[content.cells["method"] != "none"]
    if marked["attack_label"].nunique() > 1 or marked["method_label"].nunique() > 1:
        yield shown.heat_map(content)
    if content.costs["attack_label"].nunique() > 1 or content.costs["method_label"].nunique() > 1:
        yield from shown.threats(content)
        yield from shown.costs(content)
        yield from shown.tradeoffs(content)


def save(fig: Figure, stem: Path, formats: Iterable[str], dpi: int = 150) -> list[Path]:
    """Write one figure, whole or not at all, without a date: the same rows give the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        with published(path) as aside:
            fig.savefig(aside, format=name, dpi=dpi, metadata=FORMATS[name])
    return paths


def chart(figure: Chart, form: Form = FORMS["screen"]) -> Figure:
    """Panels and legend; a title on a screen alone."""
    paper = form.width is not None
    figure = tabled(figure, form.cells) if paper else figure
    groups = _groups(figure.widths, form.beside)
    fig = Figure(figsize=_size(figure, groups, form), layout="constrained")
    if paper:
        fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    widest = max(sum(figure.widths[j] for j in group) for group in groups)
    outer = fig.add_gridspec(len(groups), 1)
    for number, group in enumerate(groups):
        widths = [figure.widths[j] for j in group]
        # An empty column where a line of panels is shorter than the others: panels are of one size.
        rest = [widest - sum(widths)] if widest - sum(widths) > 0.2 else []
        inner = outer[number].subgridspec(len(figure.panels), len(group) + len(rest), width_ratios=[*widths, *rest])
        lines_of: list[list[Axes]] = []
        for i, panels in enumerate(figure.panels):
            row: list[Axes] = []
            for j, panel in enumerate(panels[at] for at in group):
                shared = {
                    "sharex": lines_of[0][j] if i and not panel.boxes else None,
                    "sharey": row[0] if row else None,
                }
                ax = fig.add_subplot(inner[i, j], **shared)
                row.append(ax)
                _panel(ax, panel, figure.looks, form)
                last = i == len(figure.panels) - 1
                x = _fitted(panel, _inside(figure, form) * widths[j] / widest, form) if paper else panel.x
                _scale(ax.xaxis, x if last else replace(x, title=""))
                _scale(ax.yaxis, panel.y if j == 0 else replace(panel.y, title=""))
                ax.tick_params(labelleft=j == 0, labelbottom=last and not panel.boxes)
            lines_of.append(row)
            _aside(row[-1], [level for level in panels[group[-1]].levels if not level.upright], form)
    _legend(fig, figure, form)
    if not paper:
        fig.suptitle(lines(figure.title, int(figure.size[0] / 7)), fontsize=10, fontweight="bold")
    return fig


def _groups(widths: Sequence[float], beside: float) -> list[list[int]]:
    """Columns of panels in as many lines as are needed."""
    groups: list[list[int]] = []
    for j, width in enumerate(widths):
        if not groups or sum(widths[k] for k in groups[-1]) + width > beside:
            groups.append([])
        groups[-1].append(j)
    return groups


def _size(figure: Chart, groups: list[list[int]], form: Form) -> tuple[float, float]:
    """Of the whole, in inches."""
    if form.width is None:
        return figure.size[0] / 100, figure.size[1] / 100
    first, line = figure.panels[0][0], form.letters * 1.2 / 72
    legend = 0.15 + line * len(_rows(figure, form))
    if first.boxes:
        most = max(box.text.count("\n") for row in figure.panels for panel in row for box in panel.boxes) + 1
        rows = sum(len(row[0].y.ticks or ()) for row in figure.panels)
        return form.width, rows * (most * form.pt(6.5) * 1.25 + 4) / 72 + len(figure.panels) * 0.35 + legend
    if first.y.ticks:  # bars, or points on lines: as many as there are names and methods
        high = sum(
            max(len(figure.looks) * form.pt(6.5) * 1.25 / 72 + 0.06, line * (1 + name.count("\n")))
            for _, name in first.y.ticks
        )
        high *= 0.8 if not figure.joined else 1.0
        return form.width, high + 0.5 + legend
    rows = len(groups) * len(figure.panels)
    tall = form.tall if len(figure.panels) > 1 else 2.0 * form.tall
    return form.width, rows * tall + 0.35 * len(groups) + legend


def _panel(ax: Axes, panel: Panel, looks: dict[str, Look], form: Form) -> None:
    for level in panel.levels:
        line = ax.axvline if level.upright else ax.axhline
        width = (0.8 if level.dash == "-" else 1.2) * form.scale
        line(level.at, color=level.ink, linestyle=level.dash, linewidth=width, zorder=1)
        if level.upright:
            above = {"transform": ax.get_xaxis_transform(), "ha": "center", "fontsize": form.pt(7.5)}
            ax.text(level.at, 1.01, level.text, color=level.ink, **above)
    for series in panel.series:
        (_bars if series.joined == "bars" else _series)(ax, series, looks[series.label], form)
    for box in panel.boxes:
        kind = KINDS[box.kind]
        ax.add_patch(Rectangle((box.x - 0.48, box.y - 0.46), 0.96, 0.92, color=kind.back, linewidth=0))
        ax.text(box.x, box.y, box.text, ha="center", va="center", color=kind.ink, fontsize=form.pt(7.5))
    if panel.boxes:
        ax.tick_params(length=0, labeltop=True, labelbottom=False)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)


def _series(ax: Axes, s: Series, look: Look, form: Form) -> None:
    if s.band:
        ax.fill_between(s.x, *s.band, color=look.colour, alpha=0.15, linewidth=0)
    if s.seeds:
        ax.plot(*s.seeds, ".", color=look.colour, markersize=2.5 * form.scale, alpha=0.7)
    if s.joined:
        line = {"linestyle": look.dash, "linewidth": (0.8 if any(s.open) else 1.5) * form.scale}
        ax.plot(s.x, s.y, color=look.colour, drawstyle="steps-post" if s.joined == "steps" else "default", **line)
    if s.told:  # corners of steps are no points
        hollow = np.resize(np.array(s.open or [False]), len(s.x))
        for some, is_open in ((~hollow, False), (hollow, True)):
            if some.any():
                spot = _marker(look, is_open, 7 * s.size * form.scale**1.5)
                # A marker at the end of an axis is drawn whole.
                ax.plot(np.array(s.x)[some], np.array(s.y)[some], linestyle="", clip_on=False, zorder=3, **spot)


def _marker(look: Look, is_open: bool, size: float = 6) -> dict[str, Any]:
    edge = (look.colour, 1.0) if is_open else ("white", 0.6)
    face = {"color": look.colour, "marker": look.marker, "markersize": size}
    face |= {"markerfacecolor": "white"} if is_open else {}
    return face | {"markeredgecolor": edge[0], "markeredgewidth": edge[1] * min(1.0, size / 6)}


def _bars(ax: Axes, s: Series, look: Look, form: Form) -> None:
    x, (low, high) = np.array(s.x, float), np.array(s.band, float)
    face = {"color": look.colour, "hatch": look.hatch, "edgecolor": "white", "linewidth": 0}
    error = {"elinewidth": 0.8 * form.scale, "capsize": 1.5 * form.scale}
    ax.barh(s.y, x, s.size, xerr=[x - low, high - x], error_kw=error, **face)
    # Right of the axes, below one another: no line runs there.
    at = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": form.pt(6.5), "color": GREY}
    for y, text in zip(s.y, s.texts, strict=True):
        ax.text(1.01, y, text, **at)
    ax.grid(axis="y", visible=False)


def _scale(axis: Any, what: Axis) -> None:
    """Ends, ticks and title of an axis."""
    if what.ends is not None:
        (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(what.ends)
    if what.ticks is not None:
        axis.set_ticks(*zip(*what.ticks, strict=True))
    if what.title:
        axis.set_label_text(what.title)


def _inside(figure: Chart, form: Form) -> float:
    """About how much of a paper's width (inches) is left for axes, between names and texts."""
    first = figure.panels[0][0]
    names = max((len(line) for _, name in first.y.ticks or () for line in name.split("\n")), default=7)
    texts = max((len(text) for s in first.series for text in s.texts), default=5)
    return form.width - (0.55 * form.letters * names + 0.5 * form.pt(6.5) * texts) / 72


def _fitted(panel: Panel, inches: float, form: Form) -> Axis:
    """A panel's x axis with its title broken into lines, and the ticks alone whose names do not touch: lines that cross
    the panel and the origin first."""
    x, letter = panel.x, 0.58 * form.letters / 72
    title = lines(" ".join(x.title.split()), max(12, int(1.15 * inches / letter)))
    if not x.ticks or not x.ends or panel.boxes:
        return replace(x, title=title)
    inch = inches / (abs(x.ends[1] - x.ends[0]) or 1.0)
    first = {0.0, *(level.at for level in panel.levels if level.upright)}
    kept: list[tuple[float, str]] = []
    for at, name in sorted(x.ticks, key=lambda tick: (tick[0] not in first, tick != x.ticks[0], tick != x.ticks[-1])):
        if all(abs(at - other) * inch > letter * (len(name) + len(said) + 1) / 2 for other, said in kept):
            kept.append((at, name))
    return replace(x, title=title, ticks=sorted(kept))


def _aside(ax: Axes, levels: Sequence[Level], form: Form) -> None:
    """Label horizontal lines right of the axes: those that would touch move down, equal ones merge."""
    (low, high), at, last = ax.get_ylim(), 2.0, ""
    paper, step = form.width is not None, 0.035
    if paper:
        step = 0.5 * form.pt(7.5) * 1.2 / 72 / form.tall
    said = {(level.at, level.brief if paper else level.text) for level in levels}
    for y, text in sorted(said, reverse=True):
        spot = (y - low) / (high - low)
        if text and (text != last or at - spot > 3 * step):
            at = min(spot, at - step * (2 + last.count("\n") + text.count("\n")))
            ax.text(1.02, at, text, color=GREY, fontsize=form.pt(7.5), va="center", transform=ax.transAxes)
            last = text


def _handles(figure: Chart, form: Form) -> list[Any]:
    handles: list[Any] = []
    size = 6 * form.scale
    for label, look in figure.looks.items():
        said = {"label": lines(figure.entry(label), 44)}
        if "bars" in figure.joined:
            handles.append(Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, **said))
        else:
            line = {"linestyle": look.dash if figure.joined else "", "linewidth": 1.5 * form.scale}
            handles.append(Line2D([], [], **line, **_marker(look, False, size), **said))
    if figure.note:
        grey = Look(GREY, "o", "", "")
        handles.append(Line2D([], [], linestyle="", label=figure.note, **_marker(grey, True, size)))
    if form.width is not None:
        levels = [level for row in figure.panels for panel in row for level in panel.levels if level.means]
        for said in dict.fromkeys((level.means, level.dash) for level in levels):
            handles.append(Line2D([], [], color=GREY, linestyle=said[1], linewidth=1.2 * form.scale, label=said[0]))
    return [*handles, *(Patch(facecolor=kind.back, edgecolor="#BBBBBB", label=kind.meaning) for kind in figure.kinds)]


def _columns(handles: Sequence[Any], inches: float, form: Form) -> int:
    longest = max(len(line) for handle in handles for line in handle.get_label().split("\n"))
    room = (0.54 * longest + 5 if form.width is None else 0.5 * longest + 4) * form.letters
    return min(len(handles), max(1, int(inches * 72 / room)))


def _rows(figure: Chart, form: Form) -> range:
    """The lines of the legend of a figure for a paper."""
    handles = _handles(figure, form)
    each = _columns(handles, form.width or 0.0, form) if handles else 1
    tall = max((handle.get_label().count("\n") + 1 for handle in handles), default=1)
    return range(-(-len(handles) // each) * tall)


def _legend(fig: Figure, figure: Chart, form: Form) -> None:
    """Below the panels, in as many columns as there is room for."""
    if handles := _handles(figure, form):
        columns = _columns(handles, fig.get_figwidth(), form)
        more = {"columnspacing": 1.0, "labelspacing": 0.3, "handlelength": 2.2, "handletextpad": 0.6}
        more = more if form.width is not None else {"handlelength": 3}
        fig.legend(handles=handles, loc="outside lower center", ncols=columns, **more)
