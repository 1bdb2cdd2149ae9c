"""The commands about what is kept: bench.runs and bench.cache."""

from __future__ import annotations

import json
import os
import time

import pytest
from filelock import FileLock

from bench import cache as command
from bench import runs as kept
from bench.cli import usage
from bench.store.cache import cached, noted, used
from bench.store.compact import compact
from bench.store.runs import read_runs
from tests.fake_runs import point, run, save

WEEK = 8 * 24 * 3600


def call(module, *words: object) -> int:
    return usage.answer([str(word) for word in words], lambda: module.__doc__, module.main)


def entry(root, n: int):
    def build(folder):
        (folder / "weights").write_bytes(b"abc" * 1000)
        return {"n": n}

    return cached(root / "cache", "host", {"n": n}, build)


def aged(path) -> None:
    """As if nobody had used it for more than a week."""
    then = time.time() - WEEK
    for file in [path, *path.rglob("*")]:
        os.utime(file, (then, then))


@pytest.fixture
def results(tmp_path):
    """Two runs, three entries of a cache that are old; the first run names the first entry."""
    with noted():
        entries = [entry(tmp_path, n) for n in range(3)]
        names = used()
    assert sorted(names) == sorted(f"host/{e.path.name}" for e in entries)
    assert used() == []  # outside of a block nothing is noted
    runs = [run(m, "prune", s, [point(ber=0.1)]) for m, s in (("uchida", 0), ("neuralmark", 1))]
    for each, e in zip(runs, entries, strict=False):
        each["stages"] = [f"host/{e.path.name}"]
    for e in entries:
        aged(e.path)
    return save(tmp_path, runs), entries, [r["rows"][0]["run_id"] for r in runs]


def test_runs_are_listed_and_shown(results, capsys):
    folder, _, ids = results
    assert call(kept, "list", "--runs", folder / "runs") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ids)
    assert call(kept, "list", "--runs", folder / "runs", "method=uchida") == 0
    said = capsys.readouterr().out
    assert ids[0] in said
    assert ids[1] not in said
    assert call(kept, "show", ids[0][:6], "--runs", folder / "runs") == 0
    said = capsys.readouterr().out
    for text in (f"{ids[0]}-0.json", "python -m bench method=uchida attack=prune seed=0", "max_damage: 5.0", "ratio"):
        assert text in said


def test_runs_are_removed_only_when_asked_for_twice(results, capsys):
    folder, _, ids = results
    figures = folder / "figures"
    figures.mkdir()
    (figures / f"uchida_prune_{ids[0]}.png").write_bytes(b"")
    assert call(kept, "rm", "seed=0", "--runs", folder / "runs") == 2
    assert "1 runs would be removed: add --yes" in capsys.readouterr().err
    assert len(read_runs(folder / "runs")) == 2
    assert call(kept, "rm", ids[0], "--yes", "--runs", folder / "runs") == 0
    assert [r["rows"][0]["run_id"] for r in read_runs(folder / "runs")] == [ids[1]]
    assert not [*figures.iterdir()]


def test_a_compacted_run_is_removed_and_the_others_stay_as_they_were(results):
    folder, _, ids = results
    before = {r["rows"][0]["run_id"]: r for r in read_runs(folder / "runs")}
    compact(folder / "runs")
    assert call(kept, "rm", ids[1], "--yes", "--runs", folder / "runs") == 0
    (left,) = read_runs(folder / "runs")
    assert left == before[ids[0]]
    assert call(kept, "rm", ids[0], "--yes", "--runs", folder / "runs") == 0
    assert not [*(folder / "runs").glob("*.parquet")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say what: list"),
        (("lst",), "did you mean 'list'"),
        (("rm",), "which run"),
        (("show", "nobody"), "no run nobody"),
        (("list", "--run", "x"), "did you mean '--runs'"),
        (("list", "methd=x"), "did you mean 'method'"),
    ],
)
def test_mistakes_are_one_line(results, capsys, words, said):
    folder, _, _ = results
    assert call(kept, *words, *(("--runs", folder / "runs") if words else ())) != 0
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_run_knows_its_part_of_the_cache(results, capsys):
    folder, entries, ids = results
    assert call(command, "path", ids[1], "--results", folder) == 0
    assert capsys.readouterr().out == f"{entries[1].path}\n"
    assert call(command, "size", "--results", folder) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (host,) = (line for line in lines if line[:1] == ["host"])
    assert host[1] == "3"
    assert float(host[2]) > 9
    assert float(host[2]) > 2.5 * float(host[4])


def test_what_no_run_names_goes_and_nothing_else(results, capsys):
    folder, entries, _ = results
    assert call(command, "prune", "--results", folder) == 0
    assert str(entries[2].path) in capsys.readouterr().out
    assert all(e.path.is_dir() for e in entries)  # it only said so
    assert call(command, "prune", "--yes", "--results", folder) == 0
    assert [e.path.is_dir() for e in entries] == [True, True, False]
    assert not [*entries[0].path.parent.glob("*.tmp")]


def test_what_was_used_of_late_stays(results):
    folder, entries, _ = results
    assert not entry(folder, 2).built  # a run that is going on opens it
    assert call(command, "prune", "--yes", "--results", folder) == 0
    assert entries[2].path.is_dir()
    aged(entries[2].path)
    assert call(command, "prune", "--yes", "--days", 9, "--results", folder) == 0
    assert entries[2].path.is_dir()
    assert call(command, "prune", "--yes", "--days", 1, "--results", folder) == 0
    assert not entries[2].path.is_dir()


def test_what_a_writer_holds_stays(results, capsys):
    folder, entries, _ = results
    left = entries[2].path.with_name(f".{entries[2].path.name}.partial")
    left.mkdir()
    (left / "1.safetensors").write_bytes(b"half")
    aged(left)
    with FileLock(entries[2].path.with_name(f"{entries[2].path.name}.lock")):
        assert call(command, "prune", "--yes", "--results", folder) == 0
        assert "2 are in use and stay" in capsys.readouterr().out
        assert left.is_dir()
        assert entries[2].path.is_dir()
    assert call(command, "prune", "--yes", "--results", folder) == 0
    assert not left.exists()
    assert not entries[2].path.exists()


def test_runs_that_do_not_say_keep_what_is_older_than_they_are(results, capsys):
    folder, entries, ids = results
    (file,) = (folder / "runs").rglob(f"{ids[1]}-*.json")
    old = json.loads(file.read_text())
    del old["stages"]
    for row in old["rows"]:
        row["created_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    file.write_text(json.dumps(old))
    assert call(command, "prune", "--yes", "--results", folder) == 0
    assert "before run files said" in capsys.readouterr().err
    assert all(e.path.is_dir() for e in entries)
    assert call(command, "path", ids[1], "--results", folder) == 1
    for row in old["rows"]:
        row["created_at"] = "2020-01-01T00:00:00Z"  # before any of the entries was made
    file.write_text(json.dumps(old))
    assert call(command, "prune", "--yes", "--results", folder) == 0
    assert [e.path.is_dir() for e in entries] == [True, False, False]


def test_a_cache_that_is_not_there_is_one_line(tmp_path, capsys):
    assert call(command, "size", "--results", tmp_path) == 1
    assert "no cache at" in capsys.readouterr().err
