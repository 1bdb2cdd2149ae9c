"""Tables of what was measured of suspects' outputs (bench.gallery), of one run and of many."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.metrics import suspect, t_interval
from bench.report.tables import Table
from bench.report.words import BEFORE, natural, places, rounded, seeds

# Column of the table: name in the run file, decimals.
NUMBERS = {
    "PSNR to unmarked": ("psnr_to_unmarked", 2),
    "SSIM": ("ssim_to_unmarked", 4),
    "presence": ("presence", 3),
    "each": ("presence_each", 3),
    "BER each": ("ber_each", 4),
    "correlation": ("correlation", 3),
    "NC": ("nc", 3),
    "NC > 0.95": ("nc_share", 3),
    "sees": ("sees", 0),
}
LEGEND = (
    "PSNR (dB) and SSIM of a suspect's outputs against the unmarked host's. Presence: mean distance of the squares "
    "from 1/2, of the mean reading and of each picture's; BER of each picture's bits; correlation of reading and mark, "
    "less 1/2, and as the papers have it (NC), whose null is not near 0. Sees: pixels a side that an output pixel "
    "depends on (512: or more), beside task.patch of the picture."
)


WRITING = (
    "What host, victim and the attack's last point write after a prompt, the likeliest token each time; perplexity is "
    "per token of the held-out references."
)


def spoken(numbers: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(who, texts) of a run's writings (bench.gallery): prompts, references, host, victim, the last suspect."""
    first, *suspects = numbers
    names = {"host": "host", "none": "victim"}
    shown = [line for line in suspects if line["knob"] in names]
    shown += [line for line in suspects[-1:] if line["knob"] not in names]
    told = [(names.get(line["knob"], suspect(line["knob"], line["strength"])), line["written"]) for line in shown]
    return [("prompt", first["prompt"]), ("reference", first["written"]), *told]


def writing(runs: list[dict[str, Any]]) -> Table:
    """What suspects write after the first prompt, a row each; of each method and attack the first run."""
    made = Table("Text", "", [("", name) for name in ("method", "model", "data", "attack", "who", "writes")], 5)
    seen: set[tuple] = set()
    for run in runs:
        lines, row = run.get("outputs") or [], run["rows"][0]
        place = [row[name] for name in ("method", "model", "data", "attack")]
        if lines and "written" in lines[0] and tuple(place) not in seen:
            seen.add(tuple(place))
            for name, texts in spoken(lines):
                made.add(*place, name, texts[0])
    return made


def table(numbers: list[dict[str, Any]], seed: int) -> Table:
    """The numbers of one run, a row per suspect."""
    columns = {name: at for name, at in NUMBERS.items() if any(at[0] in line for line in numbers)}
    made = Table("Pictures", f"seed {seed}", [("", "suspect"), *(("", name) for name in columns)], 1)
    for line in numbers:
        cells = [rounded(line.get(key), None, digits) for key, digits in columns.values()]
        made.add(suspect(line["knob"], line["strength"]), *cells)
    return made


def frame(runs: list[dict[str, Any]], df: pd.DataFrame) -> pd.DataFrame:
    """The numbers of many runs, a line per run and suspect, with the labels of their rows (`labels.variants`); of
    host and victim, which every attack's run has, one per seed, under "before attack"."""
    place = ["method_label", "attack_label", "model", "data"]
    lines = [{"run_id": run["rows"][0]["run_id"], **line} for run in runs for line in run.get("outputs") or []]
    lines = [line for line in lines if "written" not in line]
    found = pd.DataFrame(lines, columns=["run_id", "knob", "strength", *(key for key, _ in NUMBERS.values())])
    numbers = found.columns.drop(["run_id", "knob"])
    found[numbers] = found[numbers].apply(pd.to_numeric)
    found = found.drop_duplicates(["run_id", "knob", "strength"], keep="last")
    found = df[["run_id", *place, "seed", "knob", "strength"]].merge(found, on=["run_id", "knob", "strength"])
    first = found["knob"].isin(BEFORE)
    found.loc[first, "attack_label"] = "before attack"
    once = found[first].drop_duplicates([*place, "knob", "seed"])
    return pd.concat([once, found[~first]]).sort_values(
        ["model", "data", "method_label"], key=lambda column: column.map(natural), kind="stable"
    )


def summary(found: pd.DataFrame) -> Table:
    """`frame`, with means over seeds and, of the PSNR, the 95% t interval."""
    place = ["method_label", "model", "data"] if len(places(found)) > 1 else ["method_label"]
    columns = {name: at for name, at in NUMBERS.items() if found[at[0]].notna().any()}
    groups = found.groupby([*place, "attack_label", "knob", "strength"], sort=False, dropna=False)
    head = [*(name.removesuffix("_label") for name in place), "attack", "suspect", *columns]
    made = Table("Pictures", seeds(groups["seed"].nunique()), [("", name) for name in head], len(place) + 2)
    for at, group in groups:
        cells = []
        for key, digits in columns.values():
            mean, half = t_interval(group[key])
            cells.append(rounded(mean, half if key == "psnr_to_unmarked" else None, digits))
        made.add(*at[:-2], suspect(*at[-2:]), *cells)
    return made
