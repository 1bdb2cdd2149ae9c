"""Small real tasks: digits, a network of 0.4 M parameters, 64 bits; every stage shared through one cache."""

from __future__ import annotations

import os

# Before torch is imported: workers that spin on each other's cores are ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hypothesis import settings

from bench import run, stages
from bench.tasks.restoration import RestorationTask
from tests.helpers import SIZES, picture, restoration_task, tiny

settings.register_profile("any machine", deadline=None)  # no test asserts a wall time
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results folder for all workers of the session: host and marks are trained once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "results"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def marked(results: Path):
    """prepare() and the mark of a method, from the session's cache."""

    def make(method: str, attack: str = "none", *more: str):
        x = run.prepare(tiny(results, method, attack, *more))
        entry = stages.mark(x)
        from bench.store.keys import load_key

        return x, stages.load_weights(stages.skeleton(x), entry.path), load_key(entry.path / "key.safetensors")

    return make


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, in no folders of classes."""
    root = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate(SIZES):
        picture(i, size).save(root / f"{i:02}.png")
    return root


@pytest.fixture
def opened(picture_folder, results) -> RestorationTask:
    """The task of `restoration(picture_folder)`, open."""
    return restoration_task(picture_folder, results)
