"""Rows of run files, labelled so that no cell of a table mixes two configurations; with their verdicts."""

from __future__ import annotations

import json
import marshal
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from bench import metrics
from bench.report.words import harmless, knob
from bench.store.runs import frame

NUMBERS = ["strength", "n_bits", "ber", "log10_p", "claim_ber", "claim_log10_p", "seconds"]
NUMBERS += ["utility", "utility_victim", "utility_host", "utility_validation"]
NUMBERS += ["ber_aligned", "log10_p_aligned", "tests", "chance", "claim_chance"]
NUMBERS += ["tested", "utility_half", "log10_p_host"]
# What a verdict is made of (bench.metrics).
TEXTS = ("method", "attack", "model", "data", "knob", "utility_name", "device", "error", "commit", "align")
JUDGED = ["status", "knob", "detected", "claim_detected", "goal", "max_damage", "alpha", "utility", "utility_victim"]
JUDGED += ["random_keys", "false_positives", "ber", "log10_p", "ber_aligned", "log10_p_aligned", "auc_low", "committed"]
JUDGED += ["utility_name", "chance", "tested", "utility_half", "log10_p_host", "marked"]
# Nodes and values that tell no variants apart. A task's own limit is in verify's, and not in older run files.
NODES = ("", "cache.", "logger.", "task.max_damage.")
VALUES = re.compile(
    r"attack\.(.+\.)?seed|task\.max_damage|verify\.claim"
)  # the attack's own seed, and of a chain's steps


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys of the nodes, as text; a node within a node (other data, say) is told by its label."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and not (prefix and "label" in value):
            flat |= _flat(value, f"{prefix}{key}.")
        elif prefix not in NODES and key != "_target_" and not VALUES.fullmatch(prefix + key):
            flat[prefix + key] = json.dumps(value["label"] if isinstance(value, dict) else value).replace('"', "")
    return flat


def _short(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:25]}..."


def _alike(runs: list[dict]) -> tuple[list[int], list[dict[str, str]]]:
    """Each run's number among the flat configurations that are told apart, and those, in order of appearance.

    Of many runs most nodes are the same: each is flattened once.
    """
    known: dict[tuple[str, bytes], int] = {}
    parts: list[dict[str, str]] = []
    same: dict[tuple, int] = {}
    whole: dict[tuple[int, ...], int] = {}
    numbers, flats = [], []
    for run in runs:
        ids = []
        for name, node in run["config"].items():
            if not isinstance(node, dict):
                continue  # of the run itself: no variant
            if (i := known.get(told := (name, marshal.dumps(node, 2)))) is None:
                flat = _flat({name: node})
                i = known[told] = same.setdefault(tuple(flat.items()), len(parts))
                if i == len(parts):
                    parts.append(flat)
            ids.append(i)
        if (number := whole.setdefault(tuple(ids), len(flats))) == len(flats):
            flats.append({key: text for i in ids for key, text in parts[i].items()})
        numbers.append(number)
    return numbers, flats


def _differing(flats: list[dict[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for flat in flats for key in flat) if len(flats) > 1 else ()
    # A run file of before there was an option does what null does now.
    return [key for key in keys if len({flat.get(key, "null") for flat in flats}) > 1]


@dataclass
class Named:
    """Each run's label on one side (method or attack); without the option on the x axis (`swept`), and that option's
    value, None where the run has none; what differs beside the labels, a line for each name."""

    labels: list[str]
    swept: list[str]
    x: list[str | None]
    beside: list[str]


def _labels(runs: list[dict], x: str | None = None) -> dict[str, Named]:
    """For method and attack each run's name, with the shortest set of options that tells its variants apart.

    One configuration has one label over the whole report, whichever the model. Options of the method's own, and of the
    attack, are told apart over all runs, so that one row or one column of a table never holds two configurations; all
    others within a model and data. `x`: an option that is among the telling ones.
    """
    numbers, flats = _alike(runs)
    heads = [run["rows"][0] for run in runs]
    hashes: dict[str, dict[int, None]] = defaultdict(dict)  # a set that keeps its order
    for number, head in zip(numbers, heads, strict=True):
        hashes[head["config_hash"]][number] = None
    # What differs among seeds of one configuration is no variant.
    free = {key for same in hashes.values() for key in _differing([flats[n] for n in same])} - {x}
    return {side: _named(side, heads, numbers, flats, free, x) for side in ("method", "attack")}


def _named(
    side: str, heads: list[dict], numbers: list[int], flats: list[dict[str, str]], free: set[str], x: str | None
) -> Named:
    groups = defaultdict(list)
    for i, head in enumerate(heads):
        groups[head[side]].append(i)
    found = Named([""] * len(heads), [""] * len(heads), [None] * len(heads), [])
    for name, members in groups.items():
        kinds = dict.fromkeys(numbers[i] for i in members)
        keys = [k for k in _differing([flats[n] for n in kinds]) if k not in free]
        keys = sorted((k for k in keys if k.startswith("attack.") == (side == "attack")), key=partial(_rank, side))
        values = {n: tuple(flats[n].get(k, "null") for k in keys) for n in kinds}
        own = [k.startswith(f"{side}.") for k in keys]
        blocks: dict[tuple, set[tuple]] = defaultdict(set)
        at = dict.fromkeys((numbers[i], heads[i]["model"], heads[i]["data"]) for i in members)
        for n, *place in at:
            blocks[tuple(place)].add(values[n])
            blocks[()].add(tuple(v if is_own else "" for v, is_own in zip(values[n], own, strict=True)))
        told = telling([*blocks.values()], len(keys), [keys.index(x)] if x in keys else [])
        absent = {k: "null" if any(flats[n].get(k) == "null" for n in kinds) else "unset" for k in keys}
        said = {}
        for n in kinds:
            words = {keys[j]: f"{_plain(side, keys[j])}={_short(flats[n].get(keys[j], absent[keys[j]]))}" for j in told}
            rest = [word for key, word in words.items() if key != x]
            said[n] = [f"{name} ({', '.join(each)})" if each else name for each in (words.values(), rest)]
        for i in members:
            found.labels[i], found.swept[i] = said[numbers[i]]
            found.x[i] = flats[numbers[i]].get(x) if x else None
        left = [(j, k) for j, k in enumerate(keys) if j not in told]
        lines = [_beside(_plain(side, k), j, at, values, {n: both[0] for n, both in said.items()}) for j, k in left]
        if lines := [*filter(None, lines)]:
            found.beside.append(f"{name}: {'; '.join(lines)}")
    return found


def _plain(side: str, key: str) -> str:
    return key.removeprefix(f"{side}.")


def _rank(side: str, key: str) -> int:
    """Where an option comes in a label: those of its own first, the schedule's and the judge's last."""
    return 0 if key.startswith(f"{side}.") else 3 if key.startswith("verify.") else 2 if key.startswith("train.") else 1


def telling(blocks: list[set[tuple]], count: int, given: Sequence[int] = ()) -> list[int]:
    """The columns, of `count` in the tuples of every block, that tell the tuples of each block apart: `given`, and as
    few more as do, the first before later ones."""
    blocks = [block for block in blocks if len(block) > 1]

    def classes(some: Iterable[int]) -> int:
        return sum(len({tuple(values[j] for j in some) for values in block}) for block in blocks)

    whole = sum(map(len, blocks))
    rest = [j for j in range(count) if j not in given]
    if classes(given) == whole:
        return [*given]
    few = 2 if count * count * whole < 200_000 else 1
    for size in range(1, few + 1):
        for more in combinations(rest, size):
            if classes(some := [*given, *more]) == whole:
                return sorted(some)
    chosen = [*given]
    while classes(chosen) < whole:
        chosen.append(max((j for j in rest if j not in chosen), key=lambda j: (classes([*chosen, j]), -j)))
    for j in sorted(chosen, reverse=True):  # what later ones made needless
        if j not in given and classes(less := [k for k in chosen if k != j]) == whole:
            chosen = less
    return sorted(chosen)


def _beside(name: str, j: int, at: Iterable[tuple], values: dict[int, tuple], labels: dict[int, str]) -> str:
    """An option that labels do not tell: which value it has where. Nothing of what model and data say by themselves."""
    spots = [(labels[n], f"{model}, {data}", _short(values[n][j])) for n, model, data in at]
    for column in (0, 1):
        by: dict[str, set[str]] = defaultdict(set)
        for spot in spots:
            by[spot[column]].add(spot[2])
        if all(len(found) == 1 for found in by.values()):
            if column and name.startswith(("model.", "data.", "task.")):
                return ""
            where: dict[str, list[str]] = defaultdict(list)
            for place, (value,) in by.items():
                where[value].append(place)
            each = [f"{value} {('in', 'on')[column]} {' and '.join(places)}" for value, places in where.items()]
            return f"{name}={', '.join(each)}" if len(each) <= 4 else f"{name} ({len(each)} values)"
    return f"{name} ({len({value for *_, value in spots})} values)"


def _needs(attack: dict[str, Any]) -> str:
    """What an attacker has to have, in words: what it knows, and data."""
    return " ".join([*attack.get("knows", ["weights"]), *(["data"] if attack.get("data") == "attacker" else [])])


def knobs(runs: list[dict]) -> dict[str, dict[str, list]]:
    """What each attack says of its knobs, as run files have it."""
    found: dict[str, dict[str, list]] = defaultdict(dict)
    for run in runs:
        if said := run.get("knobs"):
            found[run["rows"][0]["attack"]].update(said)
    return found


def variants(runs: list[dict], x: str | None = None) -> pd.DataFrame:
    """All rows, labelled so that (method_label, attack_label, model, data) is one configuration; with verdicts.

    Adds damage, fidelity, verdict and bar, the p-value at which claims were judged; `reading`, the bit error rate that
    the verdict rests on, `how` it was read and its `evidence`, log10 p (bench.metrics); `weighed`, the damage by which
    an attacker chooses among strengths: on the validation split, or nan in rows that were made before it was measured.
    Of two files of one configuration and seed the newest counts. Verdicts are the protocol's (bench.metrics.verdict).
    `x`: the option on an x axis; then there are `x`, its value, and the labels without it, method_swept, attack_swept.
    attrs["beside"]: what differs among runs beside what labels tell, in lines.
    """
    newest: dict[tuple, int] = {}
    for i in sorted(range(len(runs)), key=lambda i: str([row["created_at"] for row in runs[i]["rows"]])):
        newest.update({(row["config_hash"], row["seed"]): i for row in runs[i]["rows"][:1]})
    runs = [runs[i] for i in sorted(newest.values())]
    df = frame(runs)
    for name in TEXTS:
        texts = (text for text in df[name].dropna().unique() if isinstance(text, str))
        if odd := {text: shown for text in texts if (shown := harmless(text)) != text}:
            df[name] = df[name].replace(odd)
    counts = [len(run["rows"]) for run in runs]
    named = _labels(runs, x)
    for side, found in named.items():
        df[f"{side}_label"] = np.repeat(np.array([*map(harmless, found.labels)], dtype=object), counts)
        if x:
            df[f"{side}_swept"] = np.repeat(np.array([*map(harmless, found.swept)], dtype=object), counts)
    if x:
        df["x"] = np.repeat(np.array(named["method"].x, dtype=object), counts)
    # Before there was verify.claim, claims were judged at alpha.
    asked = [(run["config"]["verify"]["alpha"], run["config"]["verify"].get("claim") or 1.0) for run in runs]
    df["bar"] = np.repeat([min(pair) for pair in asked], counts)
    # Where the configurations read the same (a method's new version), the hash tells them apart.
    hashes = df.groupby(["method_label", "attack_label", "model", "data"])["config_hash"]
    clash = hashes.transform("nunique") > 1
    df.loc[clash, "method_label"] += " #" + df.loc[clash, "config_hash"].str[:6]
    df[NUMBERS] = df[NUMBERS].apply(pd.to_numeric)
    before = df["knob"].eq("none") & df["status"].eq("ok")
    victims = df[before].drop_duplicates("run_id").set_index("run_id")
    # Rows of before they said so themselves.
    df["marked"] = df["marked"].astype(object).where(df["marked"].notna(), df["run_id"].map(victims["detected"]))
    damages, verdicts, readings, evidence = [], [], [], []
    for values in zip(*(df[name].to_numpy(object) for name in JUDGED), strict=True):
        row = dict(zip(JUDGED, values, strict=True))
        damages.append(metrics.damage(row))
        verdicts.append(metrics.verdict(row, row["goal"], row["max_damage"]))
        readings.append(metrics.reading(row))
        evidence.append(metrics.evidence(row))
    df["damage"] = pd.to_numeric(pd.Series(damages, dtype=object))
    sign = np.where(df["utility_name"].map(metrics.falls), -1.0, 1.0)
    df["fidelity"] = sign * (df["utility_host"] - df["utility_victim"])
    df["verdict"] = verdicts
    df["needs"] = np.repeat(np.array([_needs(run["config"]["attack"]) for run in runs], dtype=object), counts)
    df["reading"] = pd.to_numeric(pd.Series([error for error, _ in readings], dtype=object))
    df["how"] = [how for _, how in readings]
    df["evidence"] = pd.to_numeric(pd.Series(evidence, dtype=object))
    said = knobs(runs)
    pairs = df[["attack", "knob"]].drop_duplicates().itertuples(index=False, name=None)
    falling = {(attack, name): not knob(name, said.get(attack, {})).rises for attack, name in pairs}
    df["falls"] = [falling[pair] for pair in zip(df["attack"], df["knob"], strict=True)]
    own = df["run_id"].map(victims["utility_validation"])
    df["weighed"] = (sign * (own - df["utility_validation"])).where(df["damage"].notna())
    # One control that detects is enough, and the host's row is the one that everybody looks at.
    alarmed = df["run_id"].isin(df.loc[df["verdict"] == "FALSE ALARM", "run_id"])
    df.loc[alarmed & (df["knob"] == "host"), "verdict"] = "FALSE ALARM"
    df.attrs["beside"] = [harmless(line) for found in named.values() for line in found.beside]
    return df
