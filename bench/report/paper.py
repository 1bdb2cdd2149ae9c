"""Tables for papers: LaTeX (array, booktabs) that fits the text width or a column, or splits itself.

Widths are those of Computer Modern at 8 pt (footnotesize in a paper of 10 pt), from above; all lengths in pt.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from bench.report.tables import BOLD, Cell, Table

# article, 10 pt: its text in one column, and a column of two on A4, the narrowest that is usual.
WIDTHS = {"text": 345.0, "column": 221.0}
LINES = 44  # of a table's body on a page
SEP, SIZE, WORD = 6.0, 8.5, 14  # between columns; of an em; letters of a word after which it may be broken
# Widths in em, from above; what is not here is as wide as an em.
EMS = {
    0.28: "il.,:;'![]|`",
    0.34: " ",
    0.4: "fjIrst()",
    0.45: "cez",
    0.51: 'ago0123456789*/?$_^~–"',
    0.53: "kqvxyJ",
    0.56: "bdhnpuS",
    0.66: "FLZ",
    0.78: "ABCDEGHKNOPQRTUVXYw+=<>±−-&@",
    0.92: "mM%#",
}
EM = {c: em for em, letters in EMS.items() for c in letters}
TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "–": "--"}
TEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$", "−": "$-$"}
TEX |= {"α": r"$\alpha$", "×": r"$\times$", "₁": r"$_1$", "₀": r"$_0$"}
MATH = re.compile(
    r"(?<![\w#.])(?:(\d+(?:\.\d+)?)x10\^(-?\d+)|(\d+)\^(-?\d+|[a-z])|(\d+(?:\.\d+)?)e(-?\d+))(?!\w)"
    r"|(?<![\w.)\]])-(?=\.?\d)"
)
INTERVAL = re.compile(r"\[[^][]{1,20}\]")
LABEL = re.compile(r"[^a-z0-9]+")


def tex(text: str) -> str:
    """A text as LaTeX: escaped, with real minus signs and powers, and places at which long words may be broken."""
    words = ("$-$" if word == "-" else r"\allowbreak{}".join(map(_escaped, _parts(word))) for word in text.split(" "))
    made = " ".join(words)
    return INTERVAL.sub(lambda found: found[0].replace(" ", "~"), made)


def _escaped(text: str) -> str:
    out, at = "", 0
    for found in MATH.finditer(text):
        out += "".join(map(_letter, text[at : found.start()])) + _math(found)
        at = found.end()
    return out + "".join(map(_letter, text[at:]))


def _math(found: re.Match) -> str:
    lead, power, base, exponent, mantissa, tens = found.groups()
    if base:
        return f"${base}^{{{exponent}}}$"
    if lead or mantissa:
        first = "" if (lead or mantissa) == "1" else rf"{lead or mantissa}\times"
        return f"${first}10^{{{int(power or tens)}}}$"
    return "$-$"


def _letter(c: str) -> str:
    if c in TEX:
        return TEX[c]
    if c.isascii() or "À" <= c <= "ÿ":
        return c
    plain = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return "".join(TEX.get(one, one) for one in plain) or "?"


def _parts(word: str) -> list[str]:
    """What a word may be broken into."""
    return [word] if len(word) <= WORD else re.findall(rf"[^=,/_:;]{{1,{WORD}}}[=,/_:;]*|[=,/_:;]{{1,{WORD}}}", word)


def wide(text: str, bold: bool = False) -> float:
    """The width of a text in one line."""
    return SIZE * (1.16 if bold else 1.0) * sum(EM.get(c, 1.0) for c in text)


def _least(text: str, bold: bool = False) -> float:
    """The width of what cannot be broken."""
    words = INTERVAL.sub(lambda found: found[0].replace(" ", "\0"), text).split(" ")
    return max(wide(part.replace("\0", " "), bold) for word in words for part in _parts(word))


class Column(NamedTuple):
    """A column as it is set: its place in the table, its width, whether its cells are broken into lines."""

    at: int
    width: float
    broken: bool


def latex(tables: Iterable[Table], legend: str, name: str, width: str = "text") -> str:
    """One table environment each, or several where one is too wide or too long for a paper; `width`: of WIDTHS.

    The first caption has the legend, later ones refer to it. `name` begins their labels: tab:NAME.
    """
    room, what = WIDTHS[width], {"text": r"\textwidth", "column": r"\columnwidth"}[width]
    out = [rf"% needs \usepackage{{array,booktabs}}; fits {what} of article, 10 pt ({room:g} pt)", ""]
    tables = [*tables]
    first = f"tab:{name}"
    for t in tables:
        label = f"tab:{name}" + (f"-{LABEL.sub('-', t.title.lower()).strip('-')}" if len(tables) > 1 else "")
        first = label if t is tables[0] else first
        pieces = [*_pieces(_narrow(t.turned() if t.turns else t, room), room)]
        for i, (piece, columns) in enumerate(pieces, 1):
            said = f"{t.title}{f', {i} of {len(pieces)}' if len(pieces) > 1 else ''}"
            said += f" ({t.caption})" if t.caption else ""
            begins = t is tables[0] and i == 1
            after = f" {tex(legend)}" if begins else rf" Cells as in Table~\ref{{{first}}}."
            about = [rf"\caption{{{tex(said)}.{after}}}", rf"\label{{{label}{f'-{i}' if i > 1 else ''}}}"]
            out += [r"\begin{table}[t]", r"  \sloppy\centering", *(f"  {line}" for line in about)]
            out += [r"  \footnotesize\setlength{\tabcolsep}{3pt}", *_tabular(piece, columns)]
            here, anywhere = _marks(piece), _marks(t)
            notes = enumerate(t.notes, 1)
            shown = [(n, note) for n, note in notes if n in here or (i == 1 and n not in anywhere)]
            out += [rf"  \par\smallskip\raggedright [{n}] {tex(note)}" for n, note in shown]
            out += [r"\end{table}", ""]
    return "\n".join(out)


def _marks(t: Table) -> set[int]:
    """Which footnotes the cells of a table have."""
    return {int(mark) for row in t.texts for text in row for mark in re.findall(r" \[(\d+)\]", text)}


def _narrow(t: Table, room: float) -> Table:
    """A table whose keys leave room for anything else: in one column where they would take more than half."""
    keys = [max(_least(text) for text in (t.head[j][1], *(row[j].text for row in t.rows))) for j in range(t.keys)]
    if t.keys < 2 or sum(keys) + SEP * t.keys <= 0.5 * room:
        return t
    names = ", ".join(name for _, name in t.head[: t.keys])
    rows = [[Cell(", ".join(c.text for c in row[: t.keys] if c.text)), *row[t.keys :]] for row in t.rows]
    made = Table(t.title, t.caption, [("", names), *t.head[t.keys :]], 1, rows, t.notes)
    return made


def _pieces(t: Table, room: float) -> Iterator[tuple[Table, list[Column]]]:
    """The parts of a table that fit, each with its columns: keys come with each, columns of a group stay together where
    they can; so many rows as a page holds."""
    wanted, least, words = [], [], []
    for j, (_, name) in enumerate(t.head):
        cells = [(row[j].text, row[j].kind in BOLD) for row in t.rows]
        body, word = (max((size(*cell) for cell in cells), default=0.0) for size in (wide, _least))
        text = j < t.keys or not t.numeric(j)
        cap = ((0.3 if t.keys == 1 else 0.2) * room if j < t.keys else 64.0) if text else 0.45 * room
        wanted.append(max(body, _least(name)))
        least.append(max(word, _least(name), min(body, cap)))
        words.append(max(word, _least(name)))
    units = [[*group] for _, group in groupby(range(t.keys, len(t.head)), lambda j: t.head[j][0] or j)]
    keys = [*range(t.keys)]

    def fits(some: Iterable[int]) -> bool:
        some = [*keys, *some]
        return sum(least[j] for j in some) + SEP * (len(some) - 1) <= room

    for j in (j for unit in units if not fits(unit) for j in unit):
        least[j] = words[j]  # numbers above their intervals
    units = [part for unit in units for part in ([unit] if fits(unit) else [[j] for j in unit])]
    for unit in units:
        short = _least(t.head[unit[0]][0]) - sum(least[j] for j in unit) - SEP * (len(unit) - 1)
        least[unit[-1]] += max(0.0, short)
    for cut in _shared(units, fits):
        some = [*keys, *cut]
        widths = _spread([least[j] for j in some], [wanted[j] for j in some], room - SEP * (len(some) - 1))
        heads = [wide(t.head[j][1]) for j in some]
        columns = [
            Column(i, w, w < wanted[j] - 0.01 or h > w + 0.01)
            for i, (j, w, h) in enumerate(zip(some, widths, heads, strict=True))
        ]
        whole = Table(t.title, t.caption, [t.head[j] for j in some], t.keys, [], t.notes)
        rows, lines = [], 0
        for row in ([row[j] for j in some] for row in t.rows):
            tall = max(_tall(cell.text, column) for cell, column in zip(row, columns, strict=True))
            if rows and lines + tall > LINES:
                yield Table(t.title, t.caption, whole.head, t.keys, rows, t.notes), columns
                rows, lines = [], 0
            rows, lines = [*rows, row], lines + tall
        yield Table(t.title, t.caption, whole.head, t.keys, rows, t.notes), columns


def _tall(text: str, column: Column) -> int:
    return math.ceil(1.2 * wide(text) / max(column.width, 1.0)) if column.broken else 1


def _flat(units: Iterable[list[int]]) -> list[int]:
    return [j for unit in units for j in unit]


def _shared(units: list[list[int]], fits: Callable[[list[int]], bool]) -> list[list[int]]:
    """Units of columns in as few parts as fit, and those of about the same number."""
    packed: list[list[list[int]]] = []
    for unit in units:
        if packed and fits(_flat([*packed[-1], unit])):
            packed[-1].append(unit)
        else:
            packed.append([unit])
    each = math.ceil(len(units) / max(len(packed), 1))
    even = [units[at : at + each] for at in range(0, len(units), each)] if units else []
    chosen = even if len(even) <= len(packed) and all(fits(_flat(part)) for part in even) else packed
    return [_flat(part) for part in chosen] or [[]]


def _spread(least: Sequence[float], wanted: Sequence[float], room: float) -> list[float]:
    """Widths between what is needed and what is wanted: what room is left raises the narrowest first."""
    widths = [min(low, room) if len(least) == 1 else low for low in least]
    if sum(widths) > room:  # a key and one column that cannot be broken further
        return [w * room / sum(widths) for w in widths]
    if sum(map(max, least, wanted)) <= room:
        return [*map(max, least, wanted)]
    low, high = 0.0, max(wanted)
    for _ in range(40):
        level = (low + high) / 2
        tried = [max(a, min(b, level)) for a, b in zip(least, wanted, strict=True)]
        low, high = (level, high) if sum(tried) <= room else (low, level)
    return [max(a, min(b, low)) for a, b in zip(least, wanted, strict=True)]


def _tabular(t: Table, columns: Sequence[Column]) -> list[str]:
    right = [j >= t.keys and t.numeric(j) for j in range(len(t.head))]
    kinds = []
    for column, flush in zip(columns, right, strict=True):
        turn = rf">{{\ragged{'left' if flush else 'right'}\arraybackslash}}"
        kinds.append(rf"{turn}p{{{column.width:.1f}pt}}" if column.broken else "r" if flush else "l")
    top, rules, at = [], "", 0
    for group, some in groupby(t.head, key=lambda column: column[0]):
        n = len([*some])
        room = sum(column.width for column in columns[at : at + n]) + SEP * (n - 1)
        kind = "c" if wide(group) <= room else rf">{{\raggedright\arraybackslash}}p{{{room:.1f}pt}}"
        top.append(rf"\multicolumn{{{n}}}{{{kind}}}{{{tex(group)}}}")
        rules += rf" \cmidrule(lr){{{at + 1}-{at + n}}}" if group else ""
        at += n
    out = [rf"  \begin{{tabular}}{{@{{}}{''.join(kinds)}@{{}}}}", r"    \toprule"]
    out += [f"    {' & '.join(top)} \\\\", f"   {rules}"] if rules else []
    out += [f"    {' & '.join(tex(name) for _, name in t.head)} \\\\", r"    \midrule"]
    for row in t.rows:
        cells = [rf"\textbf{{{tex(cell.text)}}}" if cell.kind in BOLD else tex(cell.text) for cell in row]
        out.append(f"    {' & '.join(cells)} \\\\")
    return [*out, r"    \bottomrule", r"  \end{tabular}"]
