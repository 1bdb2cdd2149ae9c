"""Figures of the report, and the words its tables and figures share: numbers, legends, `outcomes`.

Utility in its task's unit (accuracy: percent), BER in [0, 1]. No pyplot: figures leave no global state.
"""

from __future__ import annotations

import io
import math
import re
import uuid
import zlib
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from bench import metrics
from bench.metrics import missing

CELL = ["method", "attack", "method_label", "attack_label", "model", "data"]
BEFORE = ("host", "none")  # knobs of the rows that precede every attack
UNITS = {"psnr": ("dB", 2), "ssim": ("SSIM", 3)}
# Okabe and Ito's colours, told apart by the colour-blind; marker and dash tell them apart in grey.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
NAMED = {"uchida": 0, "neuralmark": 1, "frequency": 2, "watermas": 3, "boxfree": 4, "none": 6}
KINDS = {  # of outcome: meaning, background, text; from light to dark, to be read in grey too
    "good": ("survived, resisted", "#BFE3D6", "black"),
    "warn": ("ambiguous, lost", "#F0C75E", "black"),
    "bad": ("removed, overwritten, forged", "#C04F00", "white"),
    "na": ("not applicable", "#F2F2F2", "#555555"),
    "failed": ("failed", "#BBBBBB", "black"),
    "invalid": ("INVALID: a control failed", "#000000", "white"),
}
GREY = "#555555"
# Formats and their metadata: no date, so that the same rows give the same bytes.
FORMATS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
STYLE = {
    **{"svg.hashsalt": "bench", "font.size": 9, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.6},
}


def axis(knob: str) -> str:
    """How a knob's strengths rise: "bits" (downwards), "log" or "linear"."""
    base = re.split("[,/]", knob)[0].strip()
    return "bits" if base == "bits" else "log" if base in ("tries", "sigma") or "lambda" in base else "linear"


def unit(name: Any) -> tuple[str, int]:
    """Unit of differences of a utility, and its decimals."""
    return UNITS.get(str(name).split("@")[0].lower(), ("pts", 1))


def number(x: float) -> str:
    """A strength or an alpha: 0.5, 100,000, 1e-9."""
    text = "–" if missing(x) else f"{x:,.0f}" if x >= 10_000 and x == int(x) else f"{x:g}"
    return text.replace("e-0", "e-")


def lines(text: str, room: int) -> str:
    """Break at blanks, but not inside short brackets: "(BER 0.25)" stays whole."""
    whole = re.sub(r"[(\[][^()\[\]]{,12}[)\]]", lambda m: m[0].replace(" ", "\u00a0"), text)
    return fill(whole, room, break_long_words=False, break_on_hyphens=False).replace("\u00a0", " ")


def places(df: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of model and data."""
    return [*df[["model", "data"]].drop_duplicates().itertuples(index=False, name=None)]


def seeds(n: Iterable[int]) -> str:
    """Caption: over how many seeds the cells of a table are means."""
    low, high = min(n := [*n], default=1), max(n, default=1)
    if high == 1:
        return "1 seed: no interval"
    single = ": what has no interval is 1 seed" if low == 1 else ""
    return f"{high} seeds" if low == high else f"{low} to {high} seeds{single}"


def interval(mean: float, half: float, name: Any, sign: str = "") -> str:
    """Mean ± half-width in the decimals of the utility `name`."""
    digits = unit(name)[1]
    about = "" if missing(half) else f" ± {half:.{digits}f}"
    return "–" if missing(mean) else f"{mean:{sign}.{digits}f}{about}"


def _mark(share: float, hit: float, mark: str) -> str:
    return "" if missing(share) or share == 1 - hit else mark if share == hit else f"({mark})"


def ber(p: Any) -> str:
    """The owner's BER at an aggregated point; * where it is not detected."""
    band = ", ".join(f"{end:.3f}".removeprefix("0") for end in (p.ber_low, p.ber_high))
    text = f"{p.ber:.3f}{f' [{band}]' * (p.n > 1)}{_mark(p.detected, 0, '*')}"
    return "–" if missing(p.ber) else text


def claim(p: Any) -> str:
    """The BER of the attacker's claim; ! where it passes."""
    return "–" if missing(p.claim_ber) else f"{p.claim_ber:.3f}{_mark(p.claim_detected, 1, '!')}"


def _outcome(g: pd.DataFrame) -> tuple[str, str]:
    """Text and kind of one method under one attack, over all its strengths."""
    ok = g[(g["status"] == "ok") & ~g["knob"].isin(BEFORE)]
    if ok.empty:
        return ("failed", "failed") if "failed" in set(g["status"]) else ("n/a", "na")
    if (ok["verdict"] == "unmarked").all():
        return "unmarked", "na"
    if len(forged := ok[ok["verdict"] == "forged"]):
        return f"forged ({', '.join(dict.fromkeys(forged['knob']))})", "bad"
    if ok["goal"].iloc[0] == "forge":
        return "resisted", "good"
    name, digits = unit(ok["utility_name"].iloc[0])
    point = [ok["knob"], ok["strength"].fillna(-1)]
    gone = ok[ok["verdict"].isin(["removed", "overwritten"])]
    if len(gone):  # the owner's mark is lost either way: what counts is the least damage
        hits = gone["damage"].groupby(point)
        at = hits.mean().fillna(math.inf).idxmin()
        verdict = gone.loc[hits.groups[at], "verdict"].iloc[0]
        k, n = hits.size()[at], ok.groupby(point).size()[at]
        part = f" ({k}/{n} seeds)" if k < n else ""
        return f"{verdict} at {hits.mean()[at]:.{digits}f} {name}{part}", "bad"
    for verdict, text in (("ambiguous", "ambiguous"), ("lost", "lost (new task)")):
        if (ok["verdict"] == verdict).any():
            return text, "warn"
    if "failed" in set(g["status"]):  # what was not tried cannot have been survived
        return "failed", "failed"
    alive = ok["ber"][ok["verdict"] == "survived"].groupby(point).mean()
    return f"survived ({f'BER {alive.max():.2f}' if len(alive) else 'model destroyed'})", "good"


def outcomes(df: pd.DataFrame) -> pd.DataFrame:
    """One line per method and attack (and model, data): `text`, `kind`, `reason` of what is not plain.

    removed and overwritten at the least damage, a mean over the seeds to which it happened (all, unless k/n
    says otherwise). Nothing is said of a method whose control detects, or whose victim did not verify.
    """
    out = []
    for key, g in df[df["attack"] != "none"].groupby(CELL, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        mine = df[(df[["method_label", "model", "data"]] == list(key[2:3] + key[4:])).all(axis=1)]
        bad = g[g["status"] != "ok"]
        notes = dict.fromkeys(f"{s}: {e}" for s, e in zip(bad["status"], bad["error"], strict=True))
        text, kind = _outcome(g)
        if "FALSE ALARM" in set(mine["verdict"]):
            text, kind = "INVALID", "invalid"
            notes = {"INVALID: the unmarked host verifies under the owner's key, or random keys do": None} | notes
        elif "not embedded" in set(mine["verdict"]) and kind not in ("na", "failed"):
            text, kind = "NO MARK", "invalid"
            notes = {"NO MARK: the victim did not verify before any attack": None} | notes
        out.append({**cell, "text": text, "kind": kind, "reason": "; ".join(notes)})
    return pd.DataFrame(out, columns=[*CELL, "text", "kind", "reason"])


def legends(df: pd.DataFrame) -> tuple[str, str]:
    """What the cells of the report's summary and of its strengths mean."""
    alpha, limit, utility = (
        " or ".join(x if isinstance(x, str) else number(x) for x in sorted(df[name].dropna().unique()))
        for name in ("alpha", "max_damage", "utility_name")
    )
    bands = "± is a 95% t interval over seeds, [ ] a 95% Wilson interval over pooled bits."
    return (
        "Worst outcome over all strengths: the least damage (victim - suspect, at most "
        f"{limit}) at which the mark was not detected (alpha = {alpha}), or else the highest BER survived. "
        f"Fidelity: host - victim. {bands}",
        f"Utility: {utility}. {bands} * owner's mark not detected (alpha = {alpha}), ! attacker's claim "
        "passes, in ( ) for some seeds only. Bold: BER below all other methods', beyond the intervals.",
    )


# ------------------------------------------------------------------------------------------- figures


def style(method: str, variant: int = 0) -> dict[str, Any]:
    """Colour, marker and dash of a method: a function of its name alone, so that figures can be compared.

    Its further variants keep the colour, darker, with another marker and dash.
    """
    i = NAMED.get(method, zlib.crc32(method.encode()))
    colour = tuple(c * 0.55 ** min(variant, 2) for c in to_rgb(OKABE_ITO[i % len(OKABE_ITO)]))
    marker, dash = MARKERS[(i + 3 * variant) % len(MARKERS)], DASHES[(i + variant) % len(DASHES)]
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    return {"color": colour, "marker": marker, "linestyle": dash, **edge}


def styles(block: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Style of every method label, in the order of the legend."""
    pairs = sorted({(p.method != "none", p.method, p.method_label) for p in block.itertuples()})
    nth = [sum(p[1] == before[1] for before in pairs[:i]) for i, p in enumerate(pairs)]
    return {label: style(method, n) for (_, method, label), n in zip(pairs, nth, strict=True)}


def finish(fig: Figure, title: str, looks: dict, flagged: set[str], hollow: str = "", **more: Any) -> None:
    """Title and legend; `hollow` says what an open marker means."""
    names = {name: name + " (INVALID)" * (name in flagged) for name in looks}
    handles = [Line2D([], [], label=names[name], **{**look, **more}) for name, look in looks.items()]
    if hollow:
        look = {"color": GREY, "marker": "o", "markerfacecolor": "white", "linewidth": 0.8, **more}
        handles.append(Line2D([], [], label=hollow, **look))
    room = 4.8 * max(len(handle.get_label()) for handle in handles) + 45
    columns = min(len(handles), max(1, int(fig.get_figwidth() * 72 / room)))
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3)
    fig.suptitle(title, fontsize=10, fontweight="bold")


def _aside(ax: Axes, levels: Iterable[tuple[float, str]]) -> None:
    """Label horizontal lines right of the axes: those that would touch move down, equal ones merge."""
    (low, high), at, last = ax.get_ylim(), 2.0, ""
    for y, text in sorted(set(levels), reverse=True):
        spot = (y - low) / (high - low)
        if text != last or at - spot > 0.1:
            at = min(spot, at - 0.035 * (2 + last.count("\n") + text.count("\n")))
            ax.text(1.02, at, text, color=GREY, fontsize=7.5, va="center", transform=ax.transAxes)
            last = text


def _xaxis(ax: Axes, knob: str, xs: Sequence[float], names: Sequence[str]) -> None:
    kind = axis(knob)
    if kind == "log" and min(xs) > 0:
        ax.set_xscale("log")
        ax.set_xticks([], minor=True)
    if kind == "bits":
        ax.set_xlim(max(xs) + 0.4, min(xs) - 0.4)
    if kind != "linear" or len(xs) <= 6:
        ax.set_xticks(xs, names)
    ax.set_xlabel(fill(knob, 24) or "attack")


def _curve(ax: Axes, p: pd.DataFrame, seeds: pd.DataFrame, name: str, look: dict[str, Any], size: float) -> None:
    ax.plot(p["x"], p[name], markersize=size, **look)
    if (p["n"] > 1).any():
        low = p["ber_low"] if name == "ber" else p[name] - p[f"{name}_half"]
        high = p["ber_high"] if name == "ber" else p[name] + p[f"{name}_half"]
        ax.fill_between(p["x"], low, high, color=look["color"], alpha=0.15, linewidth=0)
        ax.plot(seeds["x"], seeds[name], ".", color=look["color"], markersize=2.5, alpha=0.7)


def levels(start: pd.DataFrame, looks: dict[str, dict], task: set[str]) -> tuple[list[tuple], list[tuple]]:
    """Lines across the panels of BER and of utility (in `task`): (y, label, colour, dash), from untouched models."""
    error, utility = [(0.5, "chance", GREY, "--")], []
    for p in start.dropna(subset=["n_bits"]).itertuples():
        if (need := metrics.matches_needed(int(p.n_bits), p.alpha)) is not None:
            text = f"detected below\n(α = {number(p.alpha)}, n = {p.n_bits:.0f})"
            error.append((1 - need / p.n_bits, text, GREY, ":"))
    for p in start[start["utility_name"].isin(task)].dropna(subset=["utility", "utility_host"]).itertuples():
        utility.append((p.utility_host, "host", GREY, "-"))
        if p.method != "none":
            text = f"victim - {p.max_damage:g} {unit(p.utility_name)[0]}"
            utility.append((p.utility - p.max_damage, text, looks[p.method_label]["color"], ":"))
    return error, utility


def _curves(block: pd.DataFrame, rows: pd.DataFrame, title: str, flagged: set[str]) -> Figure:
    """BER above, utility below, against strength; a column per knob."""
    looks = styles(block)
    ok, start = block[~block["knob"].isin(BEFORE)], block[block["knob"] == "none"]
    knobs = [*dict.fromkeys(ok["knob"])]
    zero = {knob: ["none"] if axis(knob) == "linear" else [] for knob in knobs}  # there the victim is the origin
    ratio = [1.0 if ok.loc[ok["knob"] == k, "strength"].nunique() + len(zero[k]) > 1 else 0.35 for k in knobs]
    fig = Figure(figsize=(6 if len(knobs) == 1 else 2 + 2.5 * sum(ratio), 5), layout="constrained")
    axes = fig.subplots(2, len(knobs), sharex="col", sharey="row", squeeze=False, width_ratios=ratio)
    block, rows = (s.assign(x=s["strength"].fillna(1.0).where(s["knob"] != "none", 0.0)) for s in (block, rows))
    task = set(ok["utility_name"])  # not the victim's where the attacker has moved to another
    for knob, (above, below) in zip(knobs, axes.T, strict=True):
        for i, (label, look) in enumerate(looks.items()):
            p, seeds = (s[(s["method_label"] == label) & s["knob"].isin([knob, *zero[knob]])] for s in (block, rows))
            if not (p["knob"] == knob).any():
                continue
            p = p.sort_values("x")
            size = max(3.5, 7 - 1.2 * i)  # the first largest: markers that coincide stay visible
            _curve(above, p.dropna(subset=["ber"]), seeds, "ber", look, size)
            _curve(
                below, p[p["utility_name"].isin(task)], seeds[seeds["utility_name"].isin(task)], "utility", look, size
            )
            claim = p.dropna(subset=["claim_ber"])
            hollow = {**look, "markerfacecolor": "white", "markeredgecolor": look["color"], "linewidth": 0.8}
            above.plot(claim["x"], claim["claim_ber"], markersize=size, **hollow)
        xs = sorted(set(block.loc[block["knob"].isin([knob, *zero[knob]]), "x"]))
        nameless = ok.loc[ok["knob"] == knob, "strength"].isna().all()
        _xaxis(below, knob, xs, ["before", "after"][-len(xs) :] if nameless else [number(x) for x in xs])
    top = max(0.54, *ok[["ber", "ber_high", "claim_ber"]].max().fillna(0)) + 0.02
    axes[0, 0].set(ylim=(-0.02, top), ylabel="bit error rate")
    axes[1, 0].set_ylabel("\n".join(sorted(task)))
    for panels, some in zip(axes, levels(start, looks, task), strict=True):
        for (y, _, colour, dash), ax in product(dict.fromkeys(some), panels):
            ax.axhline(y, color=colour, linestyle=dash, linewidth=0.8 if dash == "-" else 1.2, zorder=1)
        _aside(panels[-1], [level[:2] for level in some])
    claimed = "open: attacker's own mark" if ok["claim_ber"].notna().any() else ""
    finish(fig, title, looks, flagged, claimed)
    return fig


def _forge(block: pd.DataFrame, title: str, flagged: set[str]) -> Figure:
    """The evidence of each forged claim, -log10 p, a line per way of forging; filled: it passes."""
    looks, ok = styles(block), block[~block["knob"].isin(BEFORE)].fillna({"strength": -1.0})
    ways = [*ok[["knob", "strength"]].drop_duplicates().itertuples(index=False, name=None)]
    fig = Figure(figsize=(6.4, 1.7 + 0.16 * len(ways) * (1 + len(looks))), layout="constrained")
    ax = fig.subplots()
    for p in ok.dropna(subset=["claim_log10_p"]).itertuples():
        look, nth = looks[p.method_label], [*looks].index(p.method_label)
        y = ways.index((p.knob, p.strength)) + 0.7 * ((nth + 0.5) / len(looks) - 0.5)
        edge = {"markeredgecolor": look["color"], "markeredgewidth": 1.2, "markersize": 7}
        face = look["color"] if p.claim_detected == 1 else "white"
        ax.plot(-p.claim_log10_p, y, **{**look, **edge, "markerfacecolor": face})
    for alpha in block["alpha"].unique():
        ax.axvline(-math.log10(alpha), color=GREY, linestyle=":", linewidth=1.2)
        at = {"transform": ax.get_xaxis_transform(), "ha": "center", "fontsize": 7.5}
        ax.text(-math.log10(alpha), 1.01, f"α = {number(alpha)}", color=GREY, **at)
    most = 1.6 * max(10.0, -ok["claim_log10_p"].min())
    ticks = [tick for tick in (0, 3, 6, 9, 30, 100, 300, 1000) if tick <= most]
    ax.set_xscale("symlog", linthresh=10)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set(xlim=(-0.4, most), xlabel="evidence of the claim, $-\\log_{10} p$", ylim=(len(ways) - 0.5, -0.5))
    ax.set_yticks(range(len(ways)), [knob if s < 0 else f"{knob} ({number(s)})" for knob, s in ways])
    finish(fig, title, looks, flagged, "open: not accepted", linestyle="")
    return fig


def _summary(cells: pd.DataFrame, attacks: list[str]) -> Figure:
    """Methods by attacks, coloured by the kind of outcome, the outcome printed in the cell."""
    rows = sorted(set(cells[["model", "data", "method_label"]].itertuples(index=False, name=None)))
    size = (max(5, 1.6 + 1.15 * len(attacks)), 1.5 + 0.55 * len(rows))
    fig = Figure(figsize=size, layout="constrained")
    ax = fig.subplots()
    for cell in cells.itertuples():
        x, y = attacks.index(cell.attack_label), rows.index((cell.model, cell.data, cell.method_label))
        _, background, ink = KINDS[cell.kind]
        ax.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=background, linewidth=0))
        ax.text(x, y, lines(cell.text, 13), ha="center", va="center", color=ink, fontsize=7.5)
    several = len(places(cells)) > 1
    names = [lines(method, 24) + f"\n{model}, {data}" * several for model, data, method in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set_xticks(range(len(attacks)), [lines(attack, 16) for attack in attacks])
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set(xlim=(-0.5, len(attacks) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.grid(False)
    ax.spines[:].set_visible(False)
    used = [KINDS[kind] for kind in KINDS if kind in set(cells["kind"])]
    handles = [Patch(facecolor=colour, edgecolor="#BBBBBB", label=name) for name, colour, _ in used]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(used), fontsize=7.5)
    return fig


def save(fig: Figure, stem: Path, formats: Iterable[str]) -> list[Path]:
    """Write one figure, whole or not at all, without a date: the same rows give the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=name, dpi=150, metadata=FORMATS[name])
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        aside.write_bytes(buffer.getvalue())
        aside.replace(path)
    return paths


def draw(agg: pd.DataFrame, df: pd.DataFrame, out: str | Path, formats: Sequence[str]) -> list[Path]:
    """One figure per attack (and model, data), and a heat map where there are two methods or two attacks."""
    written: list[Path] = []
    key, cells, several = ["attack_label", "model", "data"], outcomes(df), len(places(agg)) > 1
    good = agg[(agg["status"] == "ok") & (agg["attack"] != "none")]
    with matplotlib.rc_context(STYLE):
        for at, block in good.groupby(key, sort=False):
            if block["knob"].isin(BEFORE).all():
                continue
            rows, here = (source[(source[key] == list(at)).all(axis=1)] for source in (df, cells))
            flagged = set(here.loc[here["kind"] == "invalid", "method_label"])
            title = ", ".join(at if several else at[:1])
            if block["goal"].iloc[0] == "forge" and block["claim_log10_p"].notna().any():
                fig = _forge(block, title, flagged)
            else:
                fig = _curves(block, rows[rows["status"] == "ok"], title, flagged)
            stem = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")
            written += save(fig, Path(out) / stem, formats)
        cells = cells[cells["method"] != "none"]
        attacks = [a for a in dict.fromkeys(agg["attack_label"]) if a in set(cells["attack_label"])]
        if len(attacks) > 1 or cells["method_label"].nunique() > 1:
            written += save(_summary(cells, attacks), Path(out) / "summary", formats)
    return written
