"""One bit flipped in every kind of file that is read again: it is found, or it changes nothing that is read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.errors import UserError
from bench.store import claims
from bench.store.cache import Cache, cached
from bench.store.checkpoint import Checkpoint
from bench.store.compact import compact
from bench.store.runfile import read_loose
from bench.store.runs import read_runs
from tests.fake_runs import plausible, save
from tests.odd import flipped
from tests.system import forked
from tests.system.kills import ONE


class Found(Exception):
    """The flip was noticed."""


@dataclass(frozen=True)
class Kind:
    """A kind of file; what is read of it, which raises Found or UserError for a file that was noticed to be broken."""

    name: str
    file: Path
    read: Callable[[], Any]


def _stage(entry: Path, url: str | None = None) -> Callable[[], Any]:
    """What a run gets of a stage; with a URL, from there, by a machine that has nothing."""
    meta = json.loads((entry / "meta.json").read_bytes())
    identity = {name: value for name, value in meta["identity"].items() if name not in ("version", "stage")}
    names = sorted(path.name for path in entry.iterdir())

    def refuse(folder: Path) -> dict:
        raise Found

    def read() -> Any:
        root = entry.parents[1] if url is None else entry.parents[1].with_name("elsewhere")
        kept = {name: (entry / name).read_bytes() for name in names}
        try:
            found = cached(Cache(str(root), url), entry.parent.name, identity, refuse)
            return found.meta, {name: (found.path / name).read_bytes() for name in names if name != "meta.json"}
        finally:  # a broken one was removed
            if url:
                shutil.rmtree(root, ignore_errors=True)
            entry.mkdir(exist_ok=True)
            for name, content in kept.items():
                (entry / name).write_bytes(content)

    return read


def _checkpoint(folder: Path) -> Kind:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, torch.optim.AdamW(model.parameters(), 0.1)

    model, optimizer = parts()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    kept = Checkpoint(folder, 0, print, fits=1)
    kept.save(3, model, optimizer, [])

    def read() -> Any:
        model, optimizer = parts()
        said: list[str] = []
        epoch = Checkpoint(folder, 0, said.append).restored(model, optimizer, [])
        if said:
            raise Found
        state = [
            {k: torch.as_tensor(v).tolist() for k, v in s.items()} for s in optimizer.state_dict()["state"].values()
        ]
        return epoch, {name: value.tolist() for name, value in model.state_dict().items()}, state

    return Kind("checkpoint", kept.file, read)


def _claims(folder: Path) -> Kind:
    path = folder / "claims.json"
    entry = dict.fromkeys(claims.COLUMNS, "text") | {"name": "a", "seeds": [0, 1, 2], "run_ids": ["0a"]}
    claims.remember(path, entry | {"command": "python -m bench.claims a"})
    return Kind("claims.json", path, lambda: claims.read(path))


def kinds(base: Path) -> list[Kind]:
    """Files of a real run with a shared store, gathered runs, a checkpoint, verdicts."""
    home, store = base / "home", base / "store"
    home.mkdir(parents=True)
    words = [*ONE, f"cache.url=file://{store}"]
    assert forked.finish(words, home, base / "log") == 0, (base / "log").read_text()
    entries = sorted(p.parent for p in (home / "results" / "cache").rglob("meta.json"))
    found = []
    for entry in entries:
        there = store / entry.parent.name / entry.name
        for file in sorted(path.name for path in entry.iterdir()):
            found.append(Kind(f"{entry.parent.name}/{file}", entry / file, _stage(entry)))
            found.append(Kind(f"shared {entry.parent.name}/{file}", there / file, _stage(there, f"file://{store}")))
    (run,) = (home / "results" / "runs").rglob("*.json")
    found.append(Kind("run file", run, lambda: read_loose(run)))
    folder = save(base / "many", plausible(seeds=(0,), attacks=("none", "prune"))) / "runs"
    compact(folder)
    found.append(Kind("runs.parquet", folder / "runs.parquet", lambda: read_runs(folder)))
    return [*found, _checkpoint(base / "partial"), _claims(base)]


def measured(count: int, seed: int, base: Path) -> dict[str, Counter[str]]:
    """By kind of file, of `count` flips in all: how many were `found`, `harmless` (the same is read) or `silent`."""
    rng, results = np.random.default_rng(seed), {}
    every = kinds(base)
    for i, kind in enumerate(every):
        content, truth = kind.file.read_bytes(), kind.read()
        tally = results[kind.name] = Counter()
        for _ in range(count // len(every) + (i < count % len(every))):
            kind.file.write_bytes(flipped(content, rng))
            try:
                tally["harmless" if kind.read() == truth else "silent"] += 1
            except (Found, UserError):
                tally["found"] += 1
            kind.file.write_bytes(content)
    return results
