"""Rows of run files -> tables, figures and a page: `python -m bench.report [method=uchida,neuralmark] [attack=prune]`

Nothing is typed by hand or measured here: `variants` labels the rows, `aggregate` makes the means and
intervals of the protocol, `summary` and `strengths` the tables, bench.plots the figures, bench.html the page.
Units: BER in [0, 1], utility in its task's unit (accuracy: percent), damage and fidelity in points of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import compact, cost, metrics, pairs, plots, readings, store, verdicts
from bench.metrics import missing
from bench.plots import BEFORE, CELL, axis, ber, claim, interval, number, places, seeds
from bench.spec import choice
from bench.tables import STYLES, Table, latex, markdown, show
from bench.types import UserError

POINT = [*CELL, "knob", "strength", "config_hash", "status"]
NUMBERS = ["strength", "n_bits", "ber", "log10_p", "claim_ber", "claim_log10_p", "seconds"]
NUMBERS += ["utility", "utility_victim", "utility_host"]
GOALS = ("removal", "overwrite", "forge")
CONTROLS = (
    "Controls: the unmarked host under the owner's key; keys drawn at random, message and secret, on the victim, which "
    "are false positives where they verify. The interval is Clopper and Pearson's exact one. A control that detects "
    "makes every verdict of its method INVALID."
)
# What a point is called when its seeds disagree: the worst for the owner comes first.
WORST = ("FALSE ALARM", "forged", "overwritten", "removed", "ambiguous", "lost", "not embedded", "destroyed")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys of the nodes, as text; a node within a node (other data, say) is told by its label."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and not (prefix and "label" in value):
            flat |= _flat(value, f"{prefix}{key}.")
        elif prefix not in ("", "cache.", "logger.") and key != "_target_" and prefix + key != "attack.seed":
            flat[prefix + key] = json.dumps(value["label"] if isinstance(value, dict) else value).replace('"', "")
    return flat


def _short(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:25]}..."


def _differing(flats: list[dict[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if len({flat.get(key) for flat in flats}) > 1]


def _labels(runs: list[dict], side: str) -> list[str]:
    """Each run's method or attack name, with what tells the variants of that name (same model, data) apart.

    A method's variants are sought over all its attacks and an attack's over all methods, so that one row or
    one column of a table never holds two configurations.
    """
    flats, heads = [_flat(run["config"]) for run in runs], [run["rows"][0] for run in runs]
    hashes, groups = defaultdict(list), defaultdict(list)
    for i, head in enumerate(heads):
        hashes[head["config_hash"]].append(flats[i])
        groups[head[side], head["model"], head["data"]].append(i)
    free = {key for same in hashes.values() for key in _differing(same)}  # differs among seeds: no variant
    labels = [""] * len(runs)
    for (name, *_), members in groups.items():
        keys = [k for k in _differing([flats[i] for i in members]) if k not in free]
        keys = [k for k in keys if k.startswith("attack.") == (side == "attack")]
        for i in members:
            said = [f"{k.removeprefix(f'{side}.')}={_short(flats[i].get(k, 'unset'))}" for k in keys]
            labels[i] = f"{name} ({', '.join(said)})" if said else name
    return labels


def variants(runs: list[dict]) -> pd.DataFrame:
    """All rows, labelled so that (method_label, attack_label, model, data) is one configuration; with verdicts.

    Adds damage, fidelity and verdict. Of two files of one configuration and seed the newest counts. Verdicts are
    the protocol's (bench.metrics.verdict).
    """
    newest: dict[tuple, int] = {}
    for i in sorted(range(len(runs)), key=lambda i: str([row["created_at"] for row in runs[i]["rows"]])):
        newest.update({(row["config_hash"], row["seed"]): i for row in runs[i]["rows"][:1]})
    runs = [runs[i] for i in sorted(newest.values())]
    df = store.frame(runs)
    for side in ("method", "attack"):
        df[f"{side}_label"] = np.repeat(_labels(runs, side), [len(run["rows"]) for run in runs])
    # Where the configurations read the same (a method's new version), the hash tells them apart.
    hashes = df.groupby(["method_label", "attack_label", "model", "data"])["config_hash"]
    clash = hashes.transform("nunique") > 1
    df.loc[clash, "method_label"] += " #" + df.loc[clash, "config_hash"].str[:6]
    df[NUMBERS] = df[NUMBERS].apply(pd.to_numeric)
    rows = df.to_dict("records")
    df["damage"] = pd.to_numeric(pd.Series([metrics.damage(row) for row in rows], dtype=object))
    df["fidelity"] = df["utility_host"] - df["utility_victim"]
    df["verdict"] = [metrics.verdict(row, row["goal"], row["max_damage"]) for row in rows]
    # One control that detects is enough, and the host's row is the one that everybody looks at.
    alarmed = df["run_id"].isin(df.loc[df["verdict"] == "FALSE ALARM", "run_id"])
    df.loc[alarmed & (df["knob"] == "host"), "verdict"] = "FALSE ALARM"
    return df


def _point(key: tuple, g: pd.DataFrame) -> dict[str, Any]:
    point = dict(zip(POINT, key, strict=True)) | {"n": g["seed"].nunique()}
    point |= {name: g[name].iloc[0] for name in ("goal", "alpha", "max_damage", "utility_name")}
    ok = g[g["status"] == "ok"]
    bits = ok.dropna(subset=["ber", "n_bits"])
    trials, errors = int(bits["n_bits"].sum()), float((bits["ber"] * bits["n_bits"]).sum())
    low, high = metrics.wilson(errors, trials) if trials else (math.nan, math.nan)
    point |= {"n_bits": ok["n_bits"].max(), "ber": errors / trials if trials else math.nan}
    point |= {"ber_low": low, "ber_high": high, "log10_p_worst": ok["log10_p"].max()}
    point |= {name: ok[name].median() for name in ("log10_p", "claim_log10_p")}
    point |= {name: ok[name].mean() for name in ("claim_ber", "utility_victim", "utility_host", "seconds")}
    point |= {name: ok[name].dropna().astype(float).mean() for name in ("detected", "claim_detected")}
    for name in ("utility", "damage", "fidelity"):
        mean, half = metrics.t_interval(ok[name])
        point |= {name: mean, f"{name}_half": math.nan if half is None else half}
    counts = Counter(g["verdict"])
    worst = next((v for v in WORST if v in counts), min(counts))
    point["verdict"] = worst if len(counts) == 1 else f"{counts[worst]}/{len(g)} {worst}"
    point["reason"] = "; ".join(dict.fromkeys(str(e) for e in g["error"] if not missing(e)))
    return point


def aggregate(df: pd.DataFrame) -> pd.DataFrame:
    """One line per variant and strength over its seeds: pooled BER, Wilson and t intervals, verdict.

    `status` is part of the key: skipped and failed rows get lines of their own and enter no mean. *_half are
    half-widths of 95% t intervals (nan for one seed); detected and claim_detected are shares of seeds.
    """
    knobs = [*BEFORE, *dict.fromkeys(df["knob"])]

    def order(p: dict[str, Any]) -> tuple:
        goal = GOALS.index(p["goal"]) if p["attack"] != "none" and p["goal"] in GOALS else -1
        rise = -1 if axis(p["knob"]) == "bits" else 1
        strength = math.inf if missing(p["strength"]) else rise * p["strength"]
        knob = knobs.index(p["knob"]) if p["status"] == "ok" or p["knob"] not in BEFORE else len(knobs)
        place = (goal, p["attack_label"], p["model"], p["data"], knob, strength)
        return (*place, p["method"] != "none", p["method_label"])

    groups = df.groupby(POINT, sort=False, dropna=False)
    return pd.DataFrame(sorted((_point(key, g) for key, g in groups), key=order))


def _telling(rows: pd.DataFrame) -> pd.DataFrame:
    """Of several files that hold the same, first the one whose control detects, then those that tried random keys (a
    run that failed did not), then attack=none."""
    order = np.lexsort([rows["attack"] != "none", rows["random_keys"].isna(), rows["verdict"] != "FALSE ALARM"])
    return rows.iloc[order]


def before(df: pd.DataFrame) -> pd.DataFrame:
    """Control and untouched victim, aggregated once per method: every attack's run file repeats them."""
    rows = df[df["knob"].isin(BEFORE) & (df["status"] == "ok")]
    rows = _telling(rows).drop_duplicates(["method_label", "model", "data", "knob", "seed"])
    rows = rows.assign(attack="none", attack_label="before attack", config_hash="", goal="removal")
    return aggregate(rows) if len(rows) else aggregate(df).iloc[:0]


def points(df: pd.DataFrame, agg: pd.DataFrame) -> pd.DataFrame:
    """Every point once: `before`, then what the attacks made."""
    made = ~agg["knob"].isin(BEFORE) | (agg["status"] != "ok")
    return pd.concat([before(df), agg[made]], ignore_index=True)


def summary(df: pd.DataFrame, agg: pd.DataFrame) -> Table:
    """Methods in rows, attacks in columns: what became of each mark (see bench.plots.outcomes)."""
    start = {(p.method_label, p.model, p.data, p.knob): p for p in before(df).itertuples()}
    cells = {(c.method_label, c.model, c.data, c.attack_label): c for c in plots.outcomes(df).itertuples()}
    attacks = [*dict.fromkeys(agg.loc[agg["attack"] != "none", "attack_label"])]
    place = ["method_label", "model", "data"]
    tried = set(df.loc[df["random_keys"].fillna(0) > 0, place].itertuples(index=False, name=None))
    keys = ["method", "model", "data"] if len(places(df)) > 1 else ["method"]
    head = [("", name) for name in [*keys, "fidelity", "victim BER", "host control", *attacks]]
    table = Table("Summary", seeds(p.n for p in start.values()), head, len(keys))
    methods = {(p.model, p.data, p.method != "none", p.method_label) for p in df.itertuples()}
    for i, (model, data, _, label) in enumerate(sorted(methods)):
        row, at = [label, model, data][: len(keys)], (label, model, data)
        victim, host = start.get((*at, "none")), start.get((*at, "host"))
        if victim:
            row += [interval(victim.fidelity, victim.fidelity_half, victim.utility_name, "+"), ber(victim)]
        row += ["–"] * (len(keys) + 2 - len(row))
        said = "–" if host is None or host.verdict == "unmarked" else host.verdict
        row.append(f"ok (BER {host.ber:.2f})" if said == "control" else said)
        if said == "control" and (label, model, data) not in tried:
            row[-1] += table.note("no random keys were tried on this mark: verify.keys=0, or no run of it went through")
        if "ALARM" in said:
            table.style[i, len(row) - 1] = STYLES["invalid"]
        for attack in attacks:
            if cell := cells.get((*at, attack)):
                table.style[i, len(row)] = STYLES.get(cell.kind, "")
            row.append(cell.text + (table.note(cell.reason) if cell.reason else "") if cell else "–")
        table.rows.append(row)
    return table


def controls(df: pd.DataFrame) -> Table:
    """The controls of every mark, seeds pooled: the unmarked host and, for a mark in outputs, whatever else is clean;
    random keys on the victim."""
    hosts = df[df["knob"].map(metrics.is_control) & (df["status"] == "ok")]
    hosts = _telling(hosts).drop_duplicates(["method_label", "model", "data", "knob", "strength", "seed", "alpha"])
    keys = ["method", "model", "data"] if len(places(df)) > 1 else ["method"]
    names = ["host BER", "detected", "random keys", "verified", "95% interval", "alpha"]
    table = Table("Controls", seeds(hosts.groupby(["method_label", "model", "data"])["seed"].nunique()), [], len(keys))
    table.head = [("", name) for name in [*keys, *names]]
    hosts = hosts.assign(what=hosts["knob"].where(hosts["knob"] != "host", ""))
    groups = hosts.groupby(["model", "data", "method_label", "what", "alpha"])
    for i, ((model, data, label, what, alpha), g) in enumerate(groups):
        tried, hits = (0 if what else int(g[name].sum()) for name in ("random_keys", "false_positives"))
        low, high = metrics.clopper_pearson(hits, tried)
        rate = f"{100 * low:.2g} to {100 * high:.2g}%" if tried else "–"
        row = [f"{label}, {what}" if what else label, model, data][: len(keys)]
        row += [f"{g['ber'].mean():.3f}", f"{int(g['detected'].astype(bool).sum())} of {len(g)}"]
        table.rows.append([*row, f"{tried:,}" if tried else "–", f"{hits:,}" if tried else "–", rate, number(alpha)])
        if (g["verdict"] == "FALSE ALARM").any():
            table.style |= {(i, j): STYLES["invalid"] for j in range(len(keys), len(table.head))}
    return table


def _beats(p: Any, q: Any, apart: dict[tuple, tuple[float, float]]) -> bool:
    """Whether p's BER is below q's beyond the intervals: of each over its bits, and of their difference over seeds."""
    if p.n < 2 or q.n < 2 or p.ber_high >= q.ber_low:
        return False
    at = (p.attack_label, p.model, p.data, p.knob, None if missing(p.strength) else p.strength)
    mean, half = apart.get((*at, p.method_label, q.method_label), (math.nan, math.nan))
    return missing(half) or mean + half < 0  # no interval: fewer than two seeds in common


def _strengths(
    block: pd.DataFrame, title: str, apart: dict[tuple, tuple[float, float]], bad: dict[tuple, str]
) -> Table:
    # A run without a point gets a note, not columns.
    skipped = block["status"].eq("skipped") & block["knob"].eq("none")
    block, gone = (block[~skipped], block[skipped]) if not skipped.all() else (block, block[:0])
    methods = sorted({(p.method != "none", p.method_label) for p in block.itertuples()})
    claims, start = int(block["claim_ber"].notna().any()), block["attack"].eq("none").all()
    knobs = [knob for knob in dict.fromkeys(block["knob"]) if knob not in BEFORE]
    keys = ["model"] if start else knobs if len(knobs) == 1 else ["knob", "strength"]
    place = (block["model"].iloc[0], block["data"].iloc[0])
    words = {label: f"{label} ({bad[label, *place]})" if (label, *place) in bad else label for _, label in methods}
    head = [(words[label], name) for _, label in methods for name in ("BER", *["claim BER"] * claims, "utility")]
    n = block.loc[block["status"] == "ok", "n"]
    table = Table(title, seeds(n), [*(("", key) for key in keys), *head], len(keys))
    _ = [table.note(f"{p.method_label}: skipped: {p.reason}") for p in gone.itertuples()]
    names = {"host": "host, owner's key", "none": "victim"} if start else {"none": "–"}
    for i, ((knob, strength), at) in enumerate(block.groupby(["knob", "strength"], sort=False, dropna=False)):
        name = names.get(knob, knob)
        row, bands = [name] if start else [name, number(strength)][-len(keys) :], {}
        for _, label in methods:
            texts = ["–"] * (2 + claims)
            for p in at[at["method_label"] == label].itertuples():
                if p.status == "ok":
                    utility = interval(p.utility, p.utility_half, p.utility_name)
                    texts = [ber(p), *[claim(p)] * claims, utility]
                    counts = not missing(p.ber) and knob != "host" and words[label] == label
                    bands |= {len(row): p} if counts else {}
                else:
                    mark = table.note(f"{label}: {p.status}: {p.reason}")
                    texts[0] = texts[0].replace("–", p.status) + mark
            row += texts
        for j, p in bands.items():
            others = [q for q in bands.values() if q is not p]
            if others and all(_beats(p, q, apart) for q in others):
                table.style[i, j] = "bold"
        table.rows.append(row)
    for above, row in reversed([*pairwise(table.rows)]):
        row[0] = "" if len(keys) > 1 and row[0] == above[0] else row[0]
    return table


def strengths(df: pd.DataFrame, agg: pd.DataFrame, paired: pd.DataFrame) -> list[Table]:
    """Every point measured: a table of the untouched models, then one per attack; columns by method.

    `paired` (bench.pairs.differences) decides, beside each BER's own interval, which is bold. A method of which nothing
    can be said (a control that detects, a victim that does not verify) says so above its columns and is compared with
    none.
    """
    bad: dict[tuple, str] = {}
    for verdict, word in (("not embedded", "NO MARK"), ("FALSE ALARM", "INVALID")):
        found = df[df["verdict"] == verdict]
        bad |= dict.fromkeys(zip(found["method_label"], found["model"], found["data"], strict=True), word)
    apart: dict[tuple, tuple[float, float]] = {}
    for d in paired.itertuples():
        at = (d.attack_label, d.model, d.data, d.knob, None if missing(d.strength) else d.strength)
        apart[(*at, d.method_a, d.method_b)] = (d.ber, d.ber_half)
        apart[(*at, d.method_b, d.method_a)] = (-d.ber, d.ber_half)
    groups = points(df, agg).groupby(["attack_label", "model", "data"], sort=False)
    shown = 3 if len(places(df)) > 1 else 1
    return [_strengths(block, ", ".join(at[:shown]), apart, bad) for at, block in groups]


def report(args: argparse.Namespace) -> bool:
    """Write and print everything; False when a control failed. Raises UserError for what the user can mend."""
    from rich.console import Console

    from bench import html  # and plotly: a second that an error need not wait for

    for name in (formats := args.formats.split(",")):
        choice("--formats", name, plots.FORMATS)
    runs = args.runs or Path(args.results) / "runs"
    if args.compact:
        if args.filters:
            raise UserError(f"--compact gathers all runs: leave {args.filters[0]} out", 2)
        print(compact.compact(runs))
        return True
    everything = variants(chosen := store.selected(store.read_runs(runs), args.filters))
    df = everything[~everything["knob"].str.startswith("clean/")]  # of controls the host's row stands for all
    agg, out, said = aggregate(df), Path(args.out or args.results), plots.legends(df)
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
    paired = pairs.differences(df)
    first, rest, spent, checks = summary(df, agg), strengths(df, agg, paired), cost.costs(df), controls(everything)
    frames = {"rows": everything, "strengths": (every := points(df, agg)), "cost": spent, "pairs": paired}
    seen = readings.summary(read := readings.frame(chosen, everything))
    frames |= {"pictures": read} if seen.rows else {}
    frames["summary"] = pd.DataFrame(first.rows, columns=[name for _, name in first.head])
    texts = {f"{name}.csv": content.to_csv(index=False) for name, content in frames.items()}
    prices = cost.table(spent, [*dict.fromkeys(agg["attack_label"])])
    claims = verdicts.read(Path(args.results) / "claims.json")
    shown = (df, every, before(df), first, said[0], checks, CONTROLS, seen, spent, prices)
    content = html.Content(*shown, chosen, Path(runs), claims)
    kinds = {"summary": ([first], said[0])}
    kinds |= {"controls": ([checks], CONTROLS)} if checks.rows else {}
    kinds |= {"cost": ([prices], cost.legend(spent))} if len(spent) else {}
    kinds |= {"strengths": (rest, said[1])}
    kinds |= {"pictures": ([seen], readings.LEGEND)} if seen.rows else {}
    for name, (tables, legend) in kinds.items():
        texts |= {f"{name}.md": markdown(tables, legend), f"{name}.tex": latex(tables, legend)}
    try:
        for name, text in texts.items():
            store.write_text(out / "tables" / name, text)
        store.write_text(page := out / "report.html", html.page(content))
        figures = [page, *plots.draw(agg, df, out / "figures", formats)]
        figures += cost.draw(every, spent, out / "figures", formats)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    for tables, legend in kinds.values():
        for table in tables:
            show(table, console)
        console.print(f"{legend}\n")
    if alarm := bool((df["verdict"] == "FALSE ALARM").any()):
        print("warning: INVALID: an unmarked host verifies under its owner's key, or random keys do", file=sys.stderr)
    for path in [*(out / "tables" / name for name in texts), *figures]:
        console.print(min(str(path), os.path.relpath(path), key=len), soft_wrap=True)
    return not alarm


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m bench.report", description="Tables and figures of all runs.")
    parser.add_argument("filters", nargs="*", metavar="key=value", help=f"{', '.join(store.FILTERS)}: a,b,...")
    parser.add_argument("--results", default="results", help="folder of the results (default: %(default)s)")
    parser.add_argument("--runs", help="folder of the run files (default: RESULTS/runs)")
    parser.add_argument("--out", help="where report.html, tables/ and figures/ go (default: RESULTS)")
    parser.add_argument("--compact", action="store_true", help="gather all run files into one parquet, draw nothing")
    parser.add_argument("--formats", default="png,svg", help="png, svg, pdf (default: %(default)s)")
    args = parser.parse_intermixed_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "±" gets a "?", not a traceback
    try:
        return 0 if report(args) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
