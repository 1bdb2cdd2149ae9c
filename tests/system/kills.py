"""SIGKILL at random instants and before random changes of files: what a resumed command makes of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.store.runs import read_runs
from tests.fake_runs import plausible, save
from tests.system import forked

TINY = ("model=timm", "model.name=test_resnet", "train.epochs=1", "data.train_limit=200", "data.test_limit=60")
TINY += ("verify.keys=10", "method.n_bits=64", "device=cpu", "threads=1", "attack.ratios=[0.5]")
ONE = (*TINY, "method=uchida", "attack=prune")
GRID = ("-m", *TINY, "method=uchida", "attack=prune", "attack.scope=global,layer", "seed=0,1")
OWN = ("seconds", "peak_mb", "created_at", "commit")  # what no two runs share, or a commit beside the measuring changes


def rows(folder: Path) -> dict[str, Any]:
    """Rows of every run file below a folder, by file."""
    found = {}
    for path in sorted(folder.rglob("runs/*/*/*.json")):
        lines = json.loads(path.read_text())["rows"]
        found[str(path.relative_to(folder))] = [{k: v for k, v in row.items() if k not in OWN} for row in lines]
    return found


def made(folder: Path) -> dict[str, str]:
    """Checksums of all that a report wrote, and of the run files."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def gathered(folder: Path) -> dict[str, Any]:
    return {str(i): run for i, run in enumerate(read_runs(folder / "results" / "runs"))}


def recorded(folder: Path) -> None:
    save(folder / "results", plausible(seeds=(0, 1), attacks=("none", "prune")))


@dataclass(frozen=True)
class Scene:
    """A command; what lies there before it; what must be the same whether or not it was killed on the way, by name; and
    whether that holds at the moment of the kill too, before anybody goes on. after: a command that follows."""

    name: str
    words: tuple[str, ...]
    look: Callable[[Path], dict[str, Any]]
    module: str = "bench"
    before: Callable[[Path], None] = lambda folder: None
    always: bool = False
    after: tuple[str, ...] = ()


def shared(folder: Path) -> None:
    (folder / "shared").mkdir()


SHARED = (*ONE, "cache.url=file://{folder}/shared/cache")
SCENES = (
    Scene("run", ONE, rows),
    Scene("sweep", GRID, rows),
    Scene("report", ("--formats", "svg"), made, "bench.report", recorded),
    Scene("compact", ("--compact",), gathered, "bench.report", recorded, always=True),
    Scene("upload", SHARED, rows, before=shared, after=(*SHARED, "results_dir=other")),
)


def _finished(scene: Scene, folder: Path, log: Path) -> bool:
    """Whether a scene's command, and the one after it, end well."""
    commands = [scene.words, *([scene.after] if scene.after else [])]
    return not any(
        forked.finish([word.format(folder=folder) for word in words], folder, log, scene.module) for words in commands
    )


def differences(truth: dict[str, Any], found: dict[str, Any]) -> Counter[str]:
    changed = sum(truth[name] != found[name] for name in truth.keys() & found.keys())
    return Counter(lost=len(truth.keys() - found.keys()), doubled=len(found.keys() - truth.keys()), changed=changed)


def trials(scene: Scene, count: int, rng: np.random.Generator, base: Path) -> Counter[str]:
    """Kill a scene's command `count` times, each time in a fresh folder, every other time at an instant instead of
    before a change of a file; finish it; compare. Counts `kills`, and what went wrong."""
    whole, log, found = base / "whole", base / "log", Counter(kills=0)
    whole.mkdir(parents=True)
    scene.before(whole)
    words = [word.format(folder=whole) for word in scene.words]
    with forked.timed() as took:
        assert forked.wait(forked.start(words, whole, log, scene.module, 10**9)) == 0, log.read_text()
    changes = int(Path(f"{log}.changes").read_text())
    assert _finished(scene, whole, log), log.read_text()
    truth = scene.look(whole)
    for i in range(count):
        folder = base / str(i)
        folder.mkdir()
        scene.before(folder)
        words = [word.format(folder=folder) for word in scene.words]
        at = float(rng.uniform(0, took[0])) if i % 2 else int(rng.integers(1, changes + 1))
        found["kills"] += forked.killed(words, folder, log, scene.module, at)
        wrong = differences(truth, scene.look(folder)) if scene.always else Counter()
        forked.age(folder)
        wrong["not resumed"] += not _finished(scene, folder, log)
        wrong += differences(truth, scene.look(folder))
        wrong["files left"] += len(forked.left(folder))
        if +wrong:
            print(f"{scene.name}, kill {i} at {at}: {dict(+wrong)}\n{log.read_text()[-2000:]}", file=sys.stderr)
        found += wrong
        shutil.rmtree(folder)
    return found


def measured(counts: dict[str, int], seed: int, base: Path) -> Iterator[tuple[str, Counter[str]]]:
    """(scene, what `trials` counts) after so many kills of each."""
    for i, scene in enumerate(SCENES):
        if count := counts.get(scene.name):
            yield scene.name, trials(scene, count, np.random.default_rng([seed, i]), base / scene.name)
