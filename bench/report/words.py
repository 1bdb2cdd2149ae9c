"""The words that tables and figures share: numbers, intervals, units. No drawing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from textwrap import fill
from typing import TYPE_CHECKING, Any

from bench.metrics import missing

if TYPE_CHECKING:
    import pandas as pd

CELL = ["method", "attack", "method_label", "attack_label", "model", "data"]
BEFORE = ("host", "none")  # knobs of the rows that precede every attack
UNITS = {"psnr": ("dB", 2), "ssim": ("SSIM", 3), "bits/byte": ("bits/byte", 3)}


# Control characters, and those that turn the direction of what follows.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """A text out of a run file as every format may show it: nothing that steers a terminal, no link in Markdown."""
    return CONTROL.sub("\ufffd", re.sub(r"[\t\n\r]+", " ", text)).replace("](", "] (")


def axis(knob: str) -> str:
    """How a knob's strengths rise: "bits" (downwards), "log" or "linear"."""
    base = re.split("[,/]", knob.rpartition(" > ")[2])[0].strip()  # of a chain's last step
    if base == "bits":
        return base
    return "log" if base in ("tries", "grind", "keys", "sigma") or "lambda" in base else "linear"


def unit(name: Any) -> tuple[str, int]:
    """Unit of differences of a utility, and its decimals."""
    return UNITS.get(str(name).split("@")[0].lower(), ("pts", 1))


def number(x: float) -> str:
    """A strength or an alpha: 0.5, 100,000, 1e-9."""
    text = "–" if missing(x) else f"{x:,.0f}" if x >= 10_000 and x == int(x) else f"{x:g}"
    return text.replace("e-0", "e-")


def power(count: float) -> str:
    """How many, where tens are what matters: 20, 10^3, 3x10^5."""
    if count < 1000:
        return f"{count:g}"
    tens = len(f"{int(count)}") - 1
    lead = f"{count / 10**tens:.2g}"
    return f"10^{tens}" if lead == "1" else f"{lead}x10^{tens}"


def lines(text: str, room: int) -> str:
    """Break at blanks, but not inside short brackets: "(BER 0.25)" stays whole."""
    whole = re.sub(r"[(\[][^()\[\]]{,12}[)\]]", lambda m: m[0].replace(" ", "\u00a0"), text)
    return fill(whole, room, break_long_words=False, break_on_hyphens=False).replace("\u00a0", " ")


def configuration(p: Any) -> tuple[str, ...]:
    """What a point or an outcome tells of: its values of CELL."""
    return tuple(getattr(p, name) for name in CELL)


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
    return rounded(mean, half, unit(name)[1], sign)


def rounded(mean: float | None, half: float | None, digits: int, sign: str = "") -> str:
    """Mean ± half-width, as far as there are any."""
    about = "" if missing(half) else f" ± {half:.{digits}f}"
    return "–" if missing(mean) else f"{mean:{sign}.{digits}f}{about}"


def _mark(share: float, hit: float, mark: str) -> str:
    return "" if missing(share) or share == 1 - hit else mark if share == hit else f"({mark})"


def ber(p: Any) -> str:
    """The owner's BER at an aggregated point; * where it is not detected, a where it is read after alignment, i where
    all bits are inverted."""
    band = ", ".join(f"{end:.3f}".removeprefix("0") for end in (p.ber_low, p.ber_high))
    marks = _mark(p.detected, 0, "*") + _mark(p.aligned, 1, "a") + _mark(p.inverted, 1, "i")
    text = f"{p.ber:.3f}{f' [{band}]' * (p.n > 1)}{marks}"
    return "–" if missing(p.ber) else text


def tests(count: Any) -> int:
    """Among how many tests alpha is shared: one in rows that do not say."""
    return 1 if missing(count) else int(count)


def auc(p: Any) -> str:
    """The AUC at which marked networks are told from unmarked ones, ends of its interval: means over seeds."""
    return "–" if missing(p.auc) else f"{p.auc:.2f} [{p.auc_low:.2f}, {p.auc_high:.2f}]"


def claim(p: Any) -> str:
    """The BER of the attacker's claim; ! where it passes."""
    return "–" if missing(p.claim_ber) else f"{p.claim_ber:.3f}{_mark(p.claim_detected, 1, '!')}"
