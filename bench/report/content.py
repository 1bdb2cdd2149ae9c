"""Everything a report says, put together once from runs: what terminal, files, figures and page read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pandas as pd

from bench.errors import UserError, near
from bench.report import cost, pairs, published, readings, summaries, threats
from bench.report.aggregate import aggregate, before, points
from bench.report.labels import knobs, variants
from bench.report.outcomes import outcomes, unsound
from bench.report.tables import Table

# Options that change no number, or where it is made; the seeds are said last.
BESIDE = {"seed", "results_dir", "threads", "device", "debug", "force", "cache", "logger", "launcher", "hydra"}


class Part(NamedTuple):
    """Tables of one kind, and what their cells mean."""

    tables: list[Table]
    legend: str


@dataclass(frozen=True)
class Content:
    """runs: the run files; everything: their labelled rows; rows: those without clean/*, of which the host's row stands
    for all; points: every aggregated point, start: of untouched models; cells: outcomes of methods under attacks;
    unsound: of whom nothing can be said; costs, threats, pairs, readings: as their modules make them; attacks: their
    labels, in order; knobs: what each says of its knobs; x: the option that has figures of its own; published: what
    papers report beside it; parts: the tables that have rows (threats, summary, controls, cost, strengths, pictures,
    published, writing)."""

    runs: list[dict[str, Any]]
    everything: pd.DataFrame
    rows: pd.DataFrame
    points: pd.DataFrame
    start: pd.DataFrame
    cells: pd.DataFrame
    unsound: dict[tuple[str, str, str], str]
    costs: pd.DataFrame
    threats: pd.DataFrame
    pairs: pd.DataFrame
    readings: pd.DataFrame
    published: pd.DataFrame
    attacks: list[str]
    knobs: dict[str, dict[str, list]]
    x: str | None
    parts: dict[str, Part]

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """What is written as CSV, by name."""
        (summary,) = self.parts["summary"].tables
        frames = {"rows": self.everything, "strengths": self.points, "cost": self.costs, "threats": self.threats}
        frames |= {"pairs": self.pairs}
        frames |= {"pictures": self.readings} if "pictures" in self.parts else {}
        frames |= {"published": self.published} if "published" in self.parts else {}
        return frames | {"summary": pd.DataFrame(summary.texts, columns=[name for _, name in summary.head])}


def assemble(runs: list[dict[str, Any]], x: str | None = None, columns: Sequence[str] = ()) -> Content:
    """The content of a report of these runs (bench.store.runs), of which there is one at least. `x`: an option that has
    figures of its own; `columns`: patterns of those that tables show, where they have any (none given: all)."""
    everything = variants(runs, x)
    beside = everything.attrs.pop("beside")  # which pandas would copy with every piece of it
    rows = everything[~everything["knob"].str.startswith("clean/")]
    agg, start, cells, bad = aggregate(rows), before(rows), outcomes(rows), unsound(rows)
    attacks = [*dict.fromkeys(agg.loc[agg["attack"] != "none", "attack_label"])]
    every, spent, paired = points(start, agg), cost.costs(rows, cells), pairs.differences(rows)
    read, known = readings.frame(runs, everything), published.frame(runs, everything)
    said = knobs(runs)
    first, rest = summaries.legends(rows)
    first += f" Beside what labels say: {_listed(beside)}." if beside else ""
    cheapest = threats.cheapest(spent)
    parts = {
        "threats": Part([threats.table(cheapest)], threats.LEGEND),
        "summary": Part([summaries.summary(rows, start, cells, attacks)], first),
        "controls": Part([summaries.controls(everything)], summaries.CONTROLS),
        "cost": Part([cost.table(spent, attacks)], cost.legend(spent)),
        "strengths": Part(summaries.strengths(every, paired, bad, said), rest),
        "pictures": Part([readings.summary(read)], readings.LEGEND),
        "published": Part([published.table(known, bad)], published.LEGEND),
        "writing": Part([readings.writing(runs)], readings.WRITING),
    }
    parts = {name: part for name, part in parts.items() if any(table.rows for table in part.tables)}
    parts = picked(parts, columns) if columns else parts
    compared = (spent, cheapest, paired, read, known)
    return Content(runs, everything, rows, every, start, cells, bad, *compared, attacks, said, x, parts)


def picked(parts: dict[str, Part], patterns: Sequence[str]) -> dict[str, Part]:
    """Tables with the columns alone whose names match a pattern ("prune*"), and their keys; those without any as they
    are. Raises UserError for a pattern that matches nowhere."""
    names: dict[str, None] = {}
    made = {}
    for name, (tables, legend) in parts.items():
        kept = []
        for t in tables:
            heads = {j: {text, f"{group} {text}".strip()} for j, (group, text) in enumerate(t.head) if j >= t.keys}
            names |= dict.fromkeys(text for group, text in t.head[t.keys :])
            mine = [j for j, said in heads.items() if any(fnmatchcase(s, p) for s in said for p in patterns)]
            kept.append(t.only([*range(t.keys), *mine]) if mine else t)
        made[name] = Part(kept, legend)
    for pattern in patterns:
        if not any(fnmatchcase(text, pattern) for text in names):
            raise UserError(f"--columns {pattern}: no table has it; {near(pattern, names)}", 2)
    return made


def _listed(said: list[str], most: int = 600) -> str:
    """Lines as a sentence of bounded length."""
    kept = [*said]
    while len(kept) > 1 and sum(map(len, kept)) > most:
        kept.pop()
    rest = f"; and of {len(said) - len(kept)} more" if len(kept) < len(said) else ""
    return "; ".join(line if len(line) <= most else f"{line[:most]}..." for line in kept) + rest


def command(words: list[str] | None, seeds: Iterable[int]) -> str:
    """The command that makes runs again: what the first was called with (a run file's `command`), for all `seeds`.

    Where it runs and is kept (device, results_dir, cache, ...) is left to whoever types it.
    """
    if words is None:
        return "not recorded"
    flags, kept, each = [], [], iter(words)
    for word in each:
        if word.startswith("-"):
            flags += [word] if "=" in word else [word, next(each, "")]
        elif re.split(r"[=./@]", word.lstrip("+~"), maxsplit=1)[0] not in BESIDE:
            kept.append(word)
    every = sorted(set(seeds))
    start = ["python", "-m", "bench", *flags, *["-m"] * (len(every) > 1)]
    return shlex.join([*start, *kept, f"seed={','.join(map(str, every))}"])
