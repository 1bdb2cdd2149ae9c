"""The words that tables and figures share: numbers, intervals, units. No drawing."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from bench.metrics import Knob, missing

if TYPE_CHECKING:
    import pandas as pd

CELL = ["method", "attack", "method_label", "attack_label", "model", "data"]
BEFORE = ("host", "none")  # knobs of the rows that precede every attack
# What axes call utilities, and what none of their values can be beyond.
UTILITIES = {
    "top1": ("Top-1 accuracy (%)", (0.0, 100.0)),
    "accuracy": ("Accuracy (%)", (0.0, 100.0)),
    "pixels": ("Pixel accuracy (%)", (0.0, 100.0)),
    "miou": ("Mean IoU (%)", (0.0, 100.0)),
    "bleu": ("BLEU (%)", (0.0, 100.0)),
    "psnr": ("PSNR (dB)", (-math.inf, math.inf)),
    "ssim": ("SSIM", (-1.0, 1.0)),
    "bits/byte": ("Bits per byte", (0.0, math.inf)),
}
UNITS = {"psnr": ("dB", 2), "ssim": ("SSIM", 3), "bits/byte": ("bits/byte", 3)}


# Control characters, and those that turn the direction of what follows.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """A text out of a run file as every format may show it: nothing that steers a terminal, no link in Markdown."""
    return CONTROL.sub("\ufffd", re.sub(r"[\t\n\r]+", " ", text)).replace("](", "] (")


# Of knobs whose run files, from before an attack said so (Attack.knobs), do not.
KNOBS = {
    "bits": Knob("Bits per weight", None, rises=False),
    "ratio": Knob("Share of weights pruned"),
    "epoch": Knob("Epochs", None),
    "fraction": Knob("Share altered"),
    "sigma": Knob("Noise, σ / σ of the layer", log=True),
    "lr": Knob("Learning rate"),
    "factor": Knob("Factor", log=True),
    "lambda factor": Knob("Factor on λ", log=True),
    "tries": Knob("Keys tried", log=True),
    "grind": Knob("Keys tried", log=True),
    "keys": Knob("Keys", log=True),
}


def knob(name: str, said: Mapping[str, Sequence]) -> Knob:
    """What a knob is: as its attack says (a run file's `knobs`) of it, or of what comes before a comma or slash; or as
    its name tells. The rest of the name follows the title."""
    last = name.rpartition(" > ")[2]  # of a chain's last step
    base, _, rest = (part.strip() for part in re.match(r"([^,/]*)([,/]?)(.*)", last, re.DOTALL).groups())
    if last in said:
        return Knob(*said[last])
    found = Knob(*said[base]) if base in said else KNOBS.get(base, Knob(base, log="lambda" in base))
    return found._replace(title=f"{found.title}, {rest}") if rest else found


def called(name: Any) -> str:
    """A utility as an axis says it, with its unit; one on another data set (top1@cifar100) names that."""
    base, _, data = str(name).partition("@")
    title = UTILITIES.get(base.lower(), (base, ()))[0]
    return f"{title}, {data}" if data else title


def span(name: Any) -> tuple[float, float]:
    """The least and the most that a utility can be: no band is drawn beyond."""
    return UTILITIES.get(str(name).split("@")[0].lower(), ("", (-math.inf, math.inf)))[1]


NUMBER = re.compile(r"((?:(?<![^\s=(\[,])-)?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)", re.IGNORECASE)


def natural(text: str) -> str:
    """What texts are sorted by so that numbers in them sort by their value: n_bits=64 before n_bits=256, 1e-9 before
    0.5. Numbers become 16 digits in the order of their values."""

    def digits(found: re.Match) -> str:
        (bits,) = struct.unpack(">Q", struct.pack(">d", float(found[0].replace(",", ""))))
        return f"{bits ^ (2**64 - 1 if bits >> 63 else 2**63):016x}"

    return NUMBER.sub(digits, text)


def unit(name: Any) -> tuple[str, int]:
    """Unit of differences of a utility, and its decimals."""
    return UNITS.get(str(name).split("@")[0].lower(), ("pts", 1))


def told(name: str, said: Mapping[str, Sequence]) -> str:
    """What a knob is, where its attack says so: which way is stronger, and what leaves the victim as it is."""
    if not {*re.split(r"[,/]", last := name.rpartition(" > ")[2])[:1], last} & said.keys():
        return ""
    what = knob(name, said)
    way = f"{what.title[:1].lower()}{what.title[1:]}, {'more' if what.rises else 'less'} is stronger"
    return f"{name}: {way}" + (f", {number(what.untouched)} untouched" if what.untouched is not None else "")


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
