"""Rows of run files, labelled so that no cell of a table mixes two configurations; with their verdicts."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from bench import metrics
from bench.store.runs import frame

NUMBERS = ["strength", "n_bits", "ber", "log10_p", "claim_ber", "claim_log10_p", "seconds"]
NUMBERS += ["utility", "utility_victim", "utility_host"]
# Nodes and values that tell no variants apart. A task's own limit is in verify's, and not in older run files.
NODES, VALUES = ("", "cache.", "logger.", "task.max_damage."), ("attack.seed", "task.max_damage")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys of the nodes, as text; a node within a node (other data, say) is told by its label."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and not (prefix and "label" in value):
            flat |= _flat(value, f"{prefix}{key}.")
        elif prefix not in NODES and key != "_target_" and prefix + key not in VALUES:
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
    df = frame(runs)
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
