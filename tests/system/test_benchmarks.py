"""The scripts of benchmarks/: their arithmetic here, each for real among the slow tests. No test asserts a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from tests.helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import compare


def test_a_ratio_is_taken_within_its_round():
    line = compare.compared("a", "b", [2.0, 30.0, 4.0], [1.0, 10.0, 4.0], ">= 2")
    assert (line.ratio, line.met) == (2.0, True)
    assert compare.summed("a", "seconds", [1.0, 2.0, 9.0], "<= 1.5").met is False
    assert compare.summed("a", "seconds", [1.0]).met is None


def test_each_round_starts_with_another_case():
    order = []
    cases = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    found = compare.alternate(cases, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_table_and_the_file_say_the_same(tmp_path, capsys):
    lines = [compare.Ratio("fit, resnet18", "bare loop", 0.981, 0.004, ">= 0.97")]
    compare.show(lines, "a machine", str(tmp_path / "out.json"))
    assert "0.981" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row == {
        "case": "fit, resnet18",
        "baseline": "bare loop",
        "ratio": 0.981,
        "spread": 0.004,
        "goal": ">= 0.97",
        "met": True,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        *(pytest.param(name, marks=pytest.mark.quick) for name in ("loop", "start")),
        *("store", "overhead", "memory", "seeds", "layout", "sweep", "threads"),
    ],
)
def test_the_scripts_run(script, tmp_path):
    file = tmp_path / "out.json"
    narrow = {"loop": "4 conv", "overhead": "uchida", "seeds": "4 conv", "layout": "alexnet"}
    words = ["--only", narrow[script]] if script in narrow else []
    words += [] if script in ("start", "store", "sweep", "threads") else ["--device", "cpu"]
    argv = [sys.executable, f"benchmarks/{script}.py", "--quick", "--rounds", "1", "--json", str(file), *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert rows
    assert all(
        math.isfinite(row["ratio"]) for row in rows
    )  # "seconds above the imports", a difference, may be negative
