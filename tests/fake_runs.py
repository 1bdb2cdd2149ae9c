"""Run files that no training made: what the report, the store and the terminal are tried on."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from bench import metrics
from bench.report import __main__ as report
from bench.report import tables
from bench.report.content import assemble
from bench.report.figures import static
from bench.store import files, runfile
from bench.types import ROW_FIELDS

N, ALPHA = 256, 1e-9
KEYS = {"random_keys": 1000, "false_positives": 0, "mean_ber": 0.5, "least_log10_p": -3.0}
HOST, VICTIM = 97.8, 97.4
ATTACKS = ("none", "prune", "quantize", "finetune", "overwrite", "forge")


def run(
    method="uchida", attack="none", seed=0, points=(), *, n=N, goal="removal", config=None, controls=KEYS, **fixed
) -> dict:
    """One run file: host and victim, then `points`, each a dict with knob, strength, ber and what else differs.

    Utility in percent. `config` updates the flattened configuration ("train.epochs": 2); `fixed` every row.
    """
    flat = {"train.epochs": 30, "method.n_bits": n, "attack.scope": "global", "attack.goal": goal, "attack.seed": 0}
    flat |= {"method._target_": method, "verify.alpha": ALPHA, "verify.max_damage": 5.0, **(config or {})}
    tree: dict = {"seed": seed}
    for key, value in flat.items():
        node, _, leaf = key.rpartition(".")
        (tree.setdefault(node, {}) if node else tree)[leaf] = value
    hashed = {key: value for key, value in flat.items() if key != "attack.seed"}
    digest = hashlib.sha256(json.dumps([method, attack, hashed, fixed.get("model"), fixed.get("data")]).encode())
    rows = []
    before = [{"knob": "host", "ber": 0.5, "utility": HOST}, {"knob": "none", "ber": 0.0, "utility": VICTIM}]
    for point in [*before, *points]:
        row = dict.fromkeys(ROW_FIELDS) | {"run_id": f"{digest.hexdigest()[:8]}-{seed}", "method": method}
        row |= {"attack": attack, "model": "mlp", "data": "digits", "seed": seed, "status": "ok", "device": "cpu"}
        row |= {"utility_name": "accuracy", "utility": VICTIM, "utility_victim": VICTIM, "utility_host": HOST}
        row |= {"seconds": 1.0, "config_hash": digest.hexdigest()[:12], "created_at": "2025-01-01T00:00:00"}
        row |= {**point, **fixed}
        if method == "none":
            row["ber"] = None
        if row["ber"] is not None:
            row |= {"n_bits": n, "log10_p": metrics.log10_p(row["ber"], n)}
            row["detected"] = metrics.is_detected(row["log10_p"], ALPHA)
        if row["claim_ber"] is not None:
            row["claim_log10_p"] = metrics.log10_p(row["claim_ber"], n)
            passes = metrics.is_detected(row["claim_log10_p"], ALPHA)
            row["claim_detected"] = passes if row["claim_detected"] is None else row["claim_detected"]
        rows.append(row)
    words = [f"method={method}", f"attack={attack}", f"seed={seed}"]
    return {"config": tree, "env": {}, "command": words, "controls": controls, "rows": rows}


def point(knob="ratio", strength=0.5, ber=0.0, damage=0.0, **more) -> dict:
    return {"knob": knob, "strength": strength, "ber": ber, "utility": VICTIM - damage, **more}


def curves(method: int, seed: int) -> dict[str, list[dict]]:
    """Points of every attack that look like results; the first method (0) is weaker than the second (1)."""
    wobble, weak = ((seed * 7 + method * 3) % 5 - 2) / 2, 1.5 - 0.6 * method

    def at(knob, strength, error, damage, **more):
        wrong = max(0, min(N // 2 + 6, round(N * weak * error + 2 * wobble * (error > 0))))
        return point(knob, strength, wrong / N, damage - 0.3 * wobble, **more)

    def forged(knob, strength, matching):
        passes = method == 0 if matching == N else None
        return point(knob, strength, claim_ber=1 - matching / N, claim_detected=passes)

    def overwritten(lr, factor, low):
        knob, damage = f"lambda factor, lr {lr:g}", (1 + lr * 50) * low / 2
        return at(knob, factor, 12 * lr * low, damage, claim_ber=0.3 / low**3)

    ratios, groups = (*(i / 10 for i in range(1, 10)), 0.95, 0.99), (("tensor", 0.3, 60), ("channel", 0.2, 30))
    bits, int8 = (8, 6, 4, 3, 2), at("bits/dynamic-int8", 8, 0.0, 0.1)
    return {
        "none": [],
        "prune": [at("ratio", r, 0.3 * r**6, 70 / (1 + math.exp(-40 * (r - 0.93)))) for r in ratios],
        "quantize": [*(at(f"bits/{g}", b, 4 * x / 2**b, 12 * y / 3.5**b) for g, x, y in groups for b in bits), int8],
        "finetune": [at("epoch", e, 0.004 * e, 0.04 * e - 0.3) for e in range(1, 11)],
        "overwrite": [overwritten(lr, f, math.log10(10 * f)) for lr in (0.001, 0.01) for f in (1, 10, 100, 1000)],
        "forge": [
            forged("flip", None, N),
            forged("learn", 50, N),
            forged("tries", 1000, 153),
            forged("tries", 1e5, 162),
        ],
    }


def plausible(seeds=(0, 1, 2), methods=("uchida", "neuralmark"), attacks=ATTACKS, **fixed) -> list[dict]:
    goals = {"overwrite": "overwrite", "forge": "forge"}
    return [
        run(method, attack, seed, curves(i, seed)[attack], goal=goals.get(attack, "removal"), **fixed)
        for i, method in enumerate(methods)
        for seed in seeds
        for attack in attacks
    ]


def save(folder: Path, runs: list[dict]) -> Path:
    """Write runs as the harness does; returns the results folder."""
    for i, r in enumerate(runs):
        head = r["rows"][0]
        files.write_json(runfile.run_path(folder, head["method"], head["attack"], f"{head['run_id']}-{i}"), r)
    return folder


def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "draw", lambda *args: [])


def cell(runs: list[dict], i: int = 0) -> str:
    return assemble(runs).cells["text"][i]


def summary(runs: list[dict]) -> tables.Table:
    return assemble(runs).parts["summary"].tables[0]


def call(*args: object) -> int:
    return report.main([str(a) for a in args])
