"""Reading 100,000 run files, before and after `python -m bench.report --compact`: seconds, memory, one look-up.

    python benchmarks/store.py [--quick] [--json FILE]

Synthetic runs in the shape of real ones (the composed configurations of all methods and attacks, 3 to 11 rows each) are
written into a temporary folder. Every figure is a process of its own; the rounds of all cases take turns, in changing
order, with the baseline: `json.loads` of every file, and nothing else. Files are read from the page cache, so that the
processor is all that counts: ratios are of its seconds (of all threads), which a busy machine stretches less. What
labels and judges, for a report, is measured without the reading before it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import compare

ROOT = compare.ROOT
BASELINE, LOOKUP = "json.loads of every file", "one run, files"
# name: (folder, what is timed, what we want of its CPU time against the baseline's)
CASES = {
    BASELINE: ("loose", "plain", None),
    "read_runs, files": ("loose", "read_runs", "<= 1.0"),
    "load, files": ("loose", "load", "<= 1.25"),
    "read_runs, compacted": ("compacted", "read_runs", "<= 0.6"),
    "load, compacted": ("compacted", "load", "<= 0.4"),
    "label and judge, files": ("loose", "variants", "<= 1.25"),
    "label and judge, compacted": ("compacted", "variants", "<= 1.25"),
    LOOKUP: ("loose", "look-up", None),
    "one run, compacted": ("compacted", "look-up", None),
}


def templates() -> list[dict]:
    """The resolved configurations of every method with every attack."""
    from omegaconf import OmegaConf

    from bench.cli.compose import composed
    from bench.cli.usage import options

    pairs = [(m, a) for m in options("method") for a in options("attack")]
    cfgs = [composed([f"method={m}", f"attack={a}"]) for m, a in pairs]
    for cfg in cfgs:
        cfg.verify.max_damage = cfg.task.max_damage  # as bench.experiment has it
    return [{"names": n, "config": OmegaConf.to_container(c, resolve=True)} for n, c in zip(pairs, cfgs, strict=True)]


def generate(folder: Path, count: int) -> int:
    """Write `count` run files; returns the number of their rows."""
    from bench.store.runfile import run_path
    from bench.types import ROW_FIELDS

    draw, shapes, total = random.Random(0), templates(), 0
    env = {"python": "3.11.7", "platform": "Linux-6.1-x86_64-with-glibc2.36", "bench": "0.1.0", "torch": "2.9.0"}
    env |= {"timm": "1.0.20", "numpy": "2.2.0", "device": "cpu", "threads": 1}
    for i in range(count):
        shape = shapes[i % len(shapes)]
        method, attack = shape["names"]
        seed, model = i // len(shapes) % 20, f"resnet{i // len(shapes) // 20}"
        config = {**shape["config"], "seed": seed, "model": {**shape["config"]["model"], "name": model}}
        head = dict.fromkeys(ROW_FIELDS) | {
            "run_id": f"{draw.getrandbits(64):016x}",
            "method": method,
            "attack": attack,
        }
        head |= {"model": model, "data": "digits", "seed": seed, "n_bits": 256, "utility_name": "top1", "device": "cpu"}
        head |= {"status": "ok", "config_hash": f"{draw.getrandbits(64):016x}", "commit": "592e0e02b84e"}
        head |= {"utility_victim": draw.uniform(90, 100), "utility_host": draw.uniform(90, 100)}
        rows = []
        for j in range(3 + i % 9):
            strength = None if j < 2 else j - 2 if attack in ("finetune", "quantize") else (j - 1) / 10
            row = head | {"knob": ("host", "none", "ratio")[min(j, 2)], "strength": strength, "ber": draw.random() / 2}
            row |= {"log10_p": -77 * draw.random(), "detected": draw.random() < 0.5, "utility": draw.uniform(10, 100)}
            row |= {"seconds": round(draw.uniform(0, 60), 3), "peak_mb": round(draw.uniform(900, 1100), 1)}
            rows.append(row | {"created_at": f"2026-11-{1 + i % 28:02}T06:05:{j:02}Z"})
        total += len(rows)
        path = run_path(folder.parent, method, attack, head["run_id"])
        path = folder / path.relative_to(folder.parent / "runs")
        path.parent.mkdir(parents=True, exist_ok=True)
        controls = {
            "random_keys": 1000,
            "false_positives": 0,
            "mean_ber": draw.random(),
            "least_log10_p": -3 * draw.random(),
        }
        words = [f"method={method}", f"attack={attack}", f"seed={seed}"]
        run = {"config": config, "env": env, "command": words, "controls": controls, "rows": rows}
        path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return total


def plain(folder: Path) -> list:
    runs = []
    for path in folder.rglob("*.json"):
        with open(path, "rb") as file:
            runs.append(json.loads(file.read()))
    return runs


def one(what: str, folder: Path, sample: list[str]) -> dict[str, float]:
    """One measurement, in this process: seconds by the clock and of CPU; peak memory above the imports' in MB."""
    import pandas as pd
    import pyarrow.parquet  # noqa: F401

    from bench import store
    from bench.report.labels import variants
    from bench.store.compact import compact
    from bench.store.runs import read_run, read_runs

    pd.DataFrame([{"a": 1.0, "b": "x"}])
    calls = {"plain": plain, "read_runs": read_runs, "load": store.load, "compact": compact, "variants": variants}
    given = read_runs(folder) if what == "variants" else folder
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    if what == "look-up":
        for name in sample:
            read_run(folder / name)
    else:
        _ = calls[what](given)
    n, cpu, wall = len(sample) or 1, time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": wall / n, "cpu": cpu / n, "mb": (peak - before) / 1024}


def measured(what: str, folder: Path, sample: list[str] = ()) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", what, str(folder), *sample]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def used(folder: Path) -> float:
    """MB that a folder takes on disk."""
    return sum(path.stat().st_blocks for path in folder.rglob("*")) * 512 / 1e6


def main() -> None:
    args = compare.arguments(
        __doc__,
        ("--runs", {"type": int, "help": "number of run files (default: 100,000; --quick: 2,000)"}),
        ("--one", {"nargs": "+", "help": argparse.SUPPRESS}),
    )
    if args.one:
        print(json.dumps(one(args.one[0], Path(args.one[1]), args.one[2:])))
        return
    count, rounds = args.runs or (2_000 if args.quick else 100_000), args.rounds or (3 if args.quick else 5)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("loose", "compacted")}
        rows = generate(folders["loose"], count)
        shutil.copytree(folders["loose"], folders["compacted"], copy_function=os.link)
        names = sorted(str(p.relative_to(folders["loose"])) for p in folders["loose"].rglob("*.json"))
        sample = random.Random(1).sample(names, min(count, 200))
        print(f"{count:,} runs, {rows:,} rows, {rounds} rounds", flush=True)
        size = used(folders["loose"])
        compacting = measured("compact", folders["compacted"])
        took_cpu = f"{compacting['seconds']:.1f} s ({compacting['cpu']:.1f} s of CPU)"
        print(f"--compact: {took_cpu}, {compacting['mb']:,.0f} MB of memory; ", end="")
        print(f"{size:,.0f} MB of files to {used(folders['compacted']):,.1f} MB", flush=True)
        cases = {
            name: partial(measured, what, folders[folder], sample if what == "look-up" else ())
            for name, (folder, what, _) in CASES.items()
        }
        found = compare.alternate(cases, rounds)
    lines = []
    for name, (_, what, goal) in CASES.items():
        seconds, cpu, mb = (statistics.median(r[key] for r in found[name]) for key in ("seconds", "cpu", "mb"))
        print(f"{name}: {seconds:.4g} s, {cpu:.4g} s of CPU, {mb:,.0f} MB")
        against = LOOKUP if what == "look-up" else BASELINE
        values = ([r["cpu"] for r in found[case]] for case in (name, against))
        lines.append(compare.compared(name, against, *values, goal))
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
