"""`import bench`: what is public, that modules of public names can be called, rows from Python."""

from __future__ import annotations

import inspect

import pytest

import bench
from bench.errors import UserError
from bench.owner import evidence
from tests.helpers import TINY


def test_public_names_are_there_whoever_imported_what():
    from bench import run
    from bench import verify as command

    assert run is bench.run
    assert callable(run)
    assert inspect.isfunction(run.job)
    assert command is bench.verify
    assert callable(command)
    assert inspect.isfunction(command.main)
    assert bench.Evidence is evidence.Evidence
    assert {*bench.__all__} <= {*dir(bench)}
    for name in bench.__all__:
        assert callable(getattr(bench, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bench.nothing  # noqa: B018


def test_words_that_cannot_be_are_one_line():
    for words, said in ((["method=uchdia"], "unknown method 'uchdia'"), (["seed"], "cannot read seed")):
        with pytest.raises(UserError, match=said):
            bench.run(*words)


@pytest.mark.slow
@pytest.mark.quick
def test_rows_are_those_of_the_command_line(results):
    more = [f"results_dir={results}", "verify.keys=10", "method.n_bits=64", "train.epochs=1"]
    words = [word for word in TINY if not word.startswith("train.epochs")]
    rows = bench.run("method=uchida,vote", "attack=quantize", "attack.bits=[8]", *words, *more, seed=0)
    assert [*rows["method"].unique()] == ["uchida", "vote"]
    assert {"verdict", "ber", "utility"} <= {*rows.columns}
    assert {*bench.load(results / "runs")["run_id"]} >= {*rows["run_id"]}
