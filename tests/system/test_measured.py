"""What docs/reliability.md states, a share of it: `python -m tests.system.measure` does all."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.system import measure

pytestmark = pytest.mark.slow


def _measured(part: str, folder: Path) -> list[measure.Line]:
    measure.forked.warm()
    return [*measure.MEASURES[part](True, 1, folder)]


@pytest.mark.parametrize(
    "part", [pytest.param(p, marks=pytest.mark.quick) if p == "flips" else p for p in measure.PARTS]
)
def test_nothing_is_lost_silent_or_raw(tmp_path, part):
    """In a process of its own: a child that is forked has its parent's threads' locks, but not the threads."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        lines = pool.apply(_measured, (part, tmp_path / "base"))
    assert lines
    assert not [line for line in lines if line.wrong]
