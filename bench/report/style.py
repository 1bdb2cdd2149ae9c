"""How things look, once for terminal, files and page: methods by colour, marker, dash and hatch; outcomes by colour."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bench.report.words import natural

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours, told apart by the colour-blind; marker and dash tell them apart in grey.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
HATCHES = ("", "//", "xx", "..", "\\\\", "--", "||", "++")
NAMED = {"uchida": 0, "neuralmark": 1, "frequency": 2, "watermas": 3, "boxfree": 4, "none": 6}
GREY, RULE = "#555555", "#E6E6E6"


class Kind(NamedTuple):
    """A kind of outcome: what it means, background and ink of its cells, its style in a terminal (rich's)."""

    meaning: str
    back: str
    ink: str
    terminal: str


KINDS = {  # from light to dark, to be read in grey too
    "good": Kind("survived, later claim, resisted", "#BFE3D6", "black", "green"),
    "warn": Kind("ambiguous, lost", "#F0C75E", "black", "yellow"),
    "bad": Kind("removed, overwritten, forged", "#C04F00", "white", "red"),
    "na": Kind("not applicable", "#F2F2F2", "#555555", ""),
    "failed": Kind("failed", "#BBBBBB", "black", "red"),
    "invalid": Kind("nothing can be said", "#000000", "white", "bold white on red"),
}
TERMINAL = {"best": "bold"} | {name: kind.terminal for name, kind in KINDS.items()}
JUDGED = {"held": "good", "failed": "bad", "inconclusive": "warn"}  # verdicts of claims, as kinds
STYLE = {  # matplotlib's; letters are letters, TrueType in a PDF: submission checkers refuse Type 3
    **{"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"},
    **{"svg.hashsalt": "bench", "font.size": 9, "legend.frameon": False, "text.parse_math": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6},
}


@dataclass(frozen=True)
class Look:
    """A method's colour (#rrggbb), marker, dash and hatch, in matplotlib's words."""

    colour: str
    marker: str
    dash: str | tuple
    hatch: str


def look(method: str, variant: int = 0) -> Look:
    """The look of a method: a function of its name alone, so that figures can be compared.

    Its further variants keep the colour, darker, with another marker and dash.
    """
    i = NAMED.get(method, zlib.crc32(method.encode()))
    plain = OKABE_ITO[i % len(OKABE_ITO)]
    rgb = (round(int(plain[at : at + 2], 16) * 0.55 ** min(variant, 2)) for at in (1, 3, 5))
    marker, dash = MARKERS[(i + 3 * variant) % len(MARKERS)], DASHES[(i + variant) % len(DASHES)]
    return Look("#{:02X}{:02X}{:02X}".format(*rgb), marker, dash, HATCHES[i % len(HATCHES)])


def looks(block: pd.DataFrame) -> dict[str, Look]:
    """The look of every method label, in the order of the legend."""
    found = {(p.method != "none", p.method, p.method_label) for p in block.itertuples()}
    found = sorted(found, key=lambda p: (*p[:2], natural(p[2])))
    nth = [sum(p[1] == before[1] for before in found[:i]) for i, p in enumerate(found)]
    return {label: look(method, n) for (_, method, label), n in zip(found, nth, strict=True)}
