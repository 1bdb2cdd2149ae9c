"""Runs made by hand, for claims to be judged on."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import OmegaConf

from bench import metrics
from bench.claims.findings import Run
from bench.types import Row

N, ALPHA = 256, 1e-9
HOST, VICTIM = 98.0, 97.5


def row(knob="none", strength=None, wrong=0, damage=0.0, accepted=None, host=HOST, n=N, **fixed) -> Row:
    """One row: `wrong` of n bits, `damage` points; `accepted`: whether the attacker's claim was."""
    log10_p = metrics.log10_p(wrong / n, n)
    values = {"run_id": "r", "method": "uchida", "attack": "prune", "model": "resnet18", "data": "digits", "seed": 0}
    values |= {"n_bits": n, "ber": wrong / n, "log10_p": log10_p, "detected": metrics.is_detected(log10_p, ALPHA)}
    values |= {"utility": VICTIM - damage, "utility_victim": VICTIM, "utility_host": host, "utility_name": "top1"}
    if accepted is not None:
        values |= {"claim_ber": 0.0, "claim_detected": accepted}
    return Row(**{"knob": knob, "strength": strength, **values, **fixed})


def one(points, seed=0, victim=None, host=None, options=None, **fixed) -> Run:
    """A run: control, victim, and points as (knob, strength, wrong bits, damage[, claim accepted])."""
    rows = [row("host", wrong=N // 2, **(host or {})), row(**(victim or {})), *(row(*point) for point in points)]
    verify = {"alpha": ALPHA, "max_damage": 5.0}
    cfg = OmegaConf.create({"verify": verify, "seed": seed, "method": options or {}, "data": {}, "model": {}})
    return Run(cfg, [replace(r, seed=seed, run_id=f"r{seed}", **fixed) for r in rows])


def seeds(points, count=3, **fixed) -> list[Run]:
    """The same run with several seeds; a wrong-bit count that is a list has a value for each."""

    def at(value, seed):
        return value[seed] if isinstance(value, list) else value

    return [one([[at(v, s) for v in p] for p in points], s, **fixed) for s in range(count)]
