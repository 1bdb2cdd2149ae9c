"""Run files gathered into one parquet: nothing is lost, whoever writes, reads or kills meanwhile."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from bench import store
from bench.errors import UserError
from bench.store import compact, parquet
from bench.store.files import write_json
from bench.store.runs import read_run, read_runs
from bench.types import ROW_LATER
from tests.fake_runs import call, no_figures, plausible, point, run, save
from tests.helpers import tiny


def several() -> list[dict]:
    """Runs of every attack, whole and fractional strengths mixed, names that sort oddly, nodes that others lack."""
    runs = plausible(seeds=(0, 1))
    runs += [run("a-b", "prune", 0, [point(strength=1), point(strength=0.25, ber=0)])]
    runs += [run("a", "prune", 0, [point("none", None, status="skipped", error="no “thing” | ☃\n")])]
    runs += [run("a", "prune", 1, [point()], config={"verify.more": [1, 1.0, None, {"x": True}], "zz.late": 1e-300})]
    runs[-1]["config"] = dict(reversed(runs[-1]["config"].items()))
    runs[-1]["env"] = {"threads": 2, "device": "cpu"}
    seen = run("b", "surrogate", 0, [point("host", None)])
    rows = seen.pop("rows")
    return [*runs, {**seen, "outputs": [{"knob": "host", "strength": None, "nc": 0.5}], "rows": rows}]


def text(runs: list[dict]) -> str:
    return json.dumps(runs)


def loose(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*.json") if not p.name.startswith(".")]


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(tmp_path, several()) / "runs"


def test_runs_frames_and_reports_are_what_they_were(folder, tmp_path, capsys, monkeypatch):
    no_figures(monkeypatch)
    monkeypatch.setattr(compact, "GROUP", 7)  # several of them
    paths = sorted(loose(folder))
    each = {path: read_run(path) for path in paths}
    before, frame, part = read_runs(folder), store.load(folder), read_runs(folder / "a")
    assert call("--results", tmp_path, "--out", tmp_path / "before", "seed=0", "attack=prune") == 0
    capsys.readouterr()
    assert call("--results", tmp_path, "--compact") == 0
    assert capsys.readouterr().out == f"{len(paths)} run files gathered: {len(paths)} runs in {folder}/runs.parquet\n"
    assert not loose(folder)
    assert text(read_runs(folder)) == text(before) == text([each[p] for p in sorted(paths)])
    pd.testing.assert_frame_equal(store.load(folder), frame, check_exact=True)
    for path, old in each.items():
        assert text([read_run(path)]) == text([old])
    assert text(read_runs(folder / "a")) == text(part)
    with pytest.raises(UserError, match="no run files below"):
        read_runs(folder / "nobody")
    with pytest.raises(FileNotFoundError):
        read_run(folder / "a" / "prune" / "other.json")
    assert call("--results", tmp_path, "--out", tmp_path / "after", "seed=0", "attack=prune") == 0
    for path in (tmp_path / "before" / "tables").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / "tables" / path.name).read_bytes()


def test_any_parquet_reader_sees_tidy_rows(folder):
    frame = store.load(folder)
    compact.compact(folder)
    table = pd.read_parquet(folder / "runs.parquet")
    assert len(table) == len(frame)
    assert table["ber"].tolist() == pytest.approx(frame["ber"].astype(float).tolist(), nan_ok=True)
    assert {json.loads(t)["alpha"] for t in table["config.verify"]} == set(frame["alpha"])


def test_a_look_up_reads_few_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(compact, "GROUP", 8)
    folder = save(tmp_path, [run("uchida", "prune", s, [point()] * 5) for s in range(40)]) / "runs"
    paths = loose(folder)
    each = {path: read_run(path) for path in paths}
    compact.compact(folder)
    groups = pq.ParquetFile(folder / "runs.parquet")
    for i in range(groups.num_row_groups):  # each with a dictionary of its own few names
        assert len(groups.read_row_group(i)["run_id"].chunk(0).dictionary) == 8
    read, runs_of = [], parquet.runs_of

    def count(table):
        read.append(table.num_rows)
        return runs_of(table)

    monkeypatch.setattr(parquet, "runs_of", count)
    assert all(text([read_run(path)]) == text([old]) for path, old in each.items())
    assert set(read) == {7}


def test_a_later_file_overrides_and_the_next_time_takes_it_up(folder):
    path = sorted(loose(folder))[3]
    compact.compact(folder)
    rows = len(store.load(folder))
    changed = read_run(path)
    changed["rows"][0]["seconds"] = 77.0
    write_json(path, changed)
    for _ in range(3):
        assert read_run(path)["rows"][0]["seconds"] == 77.0
        frame = store.load(folder)
        assert (len(frame), list(frame["seconds"]).count(77.0)) == (rows, 1)
        said = compact.compact(folder)
    assert said.startswith("0 run files gathered")
    assert not loose(folder)


def test_what_failed_or_is_no_run_or_would_change_stays_a_file(folder):
    paths = sorted(loose(folder))
    whole = [read_run(path) for path in paths]
    whole[0]["rows"][-1] |= {"status": "failed", "error": "RuntimeError: out of luck"}
    whole[1]["rows"][0]["extra"] = 1
    whole[2]["rows"][0]["seed"] = 2**70
    whole[3]["rows"][0]["strength"] = 2**53 + 1
    whole[4]["more"] = "than others"
    for path, content in zip(paths[:5], whole, strict=False):
        path.write_text(json.dumps(content))
    before = read_runs(folder)
    paths[5].write_text("{")
    said = compact.compact(folder)
    assert sorted(loose(folder)) == paths[:6]
    assert said.endswith("left as files: 1 failed, 1 not readable, 4 not to be had exactly from a parquet")
    paths[5].write_text(json.dumps(before[5]))
    assert text(read_runs(folder)) == text(before)


def test_files_written_meanwhile_stay(folder, monkeypatch):
    paths = sorted(loose(folder))
    write = compact._write

    def meanwhile(path, tables):
        write(path, tables)
        newer = read_run(paths[0])
        newer["rows"][0]["seconds"] = 88.0
        write_json(paths[0], newer)
        write_json(paths[0].with_name("new.json"), newer)

    monkeypatch.setattr(compact, "_write", meanwhile)
    compact.compact(folder)
    assert {p.name for p in loose(folder)} == {paths[0].name, "new.json"}
    assert len(read_runs(folder)) == len(paths) + 1
    assert read_run(paths[0])["rows"][0]["seconds"] == 88.0


@pytest.mark.parametrize("when", ["write", "rename", "delete"])
def test_a_killed_compaction_loses_nothing(folder, monkeypatch, when):
    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    before = text(read_runs(folder))
    unlink, calls = Path.unlink, []

    def third(self, **kwargs):
        calls.append(self)
        return kill() if len(calls) == 4 else unlink(self, **kwargs)

    with monkeypatch.context() as patched:
        target = {
            "write": (pq, "read_metadata", kill),
            "rename": (os, "replace", kill),
            "delete": (Path, "unlink", third),
        }
        patched.setattr(*target[when])
        if when != "delete":
            patched.setattr(Path, "unlink", lambda self, **kwargs: None)  # a kill cleans nothing up
        with pytest.raises(Killed):
            compact.compact(folder)
    assert loose(folder)
    assert text(read_runs(folder)) == before
    compact.compact(folder)
    assert not loose(folder)
    assert text(read_runs(folder)) == before
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == [".compact.lock", "runs.parquet"]


def test_readers_and_writers_beside_it_miss_nothing(tmp_path):
    folder = save(tmp_path, [run("uchida", "prune", s, [point()]) for s in range(60)]) / "runs"
    counts, stop, failed = [], threading.Event(), []

    def reader():
        while not stop.is_set():
            try:
                counts.append(len(read_runs(folder)))
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    for s in range(60, 160):
        save(tmp_path, [run("neuralmark", "prune", s, [point()])])
        if s % 10 == 0:
            compact.compact(folder)
    stop.set()
    thread.join()
    assert not failed
    assert counts == sorted(counts)
    assert counts[0] >= 60
    assert len(read_runs(folder)) == 160


def test_what_is_first_compacted_during_a_walk_is_found(folder, monkeypatch):
    walk, count = os.walk, len(read_runs(folder))

    def slow(top, **how):
        for i, found in enumerate(walk(top, **how)):
            yield found
            if i == 0:
                with monkeypatch.context() as patch:
                    patch.setattr(os, "walk", walk)
                    compact.compact(folder)

    monkeypatch.setattr(os, "walk", slow)
    assert len(read_runs(folder)) == count


def test_parquets_of_several_machines_become_one(tmp_path):
    for i, name in enumerate("ab"):
        compact.compact(save(tmp_path / "runs" / name, [run("uchida", "prune", i, [point()])]) / "runs")
    before = text(read_runs(tmp_path / "runs"))
    said = compact.compact(tmp_path / "runs")
    assert "2 runs in" in said
    assert text(read_runs(tmp_path / "runs")) == before
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.parquet")] == ["runs/runs.parquet"]


def test_resuming_finds_a_compacted_run_done(results, tmp_path):
    from bench import run as harness

    words = ("uchida", "prune", f"cache.root={results}/cache")  # of the session: nothing is trained for this
    cfg = tiny(tmp_path, *words)
    first = harness.run(cfg)
    compact.compact(tmp_path / "runs")
    assert not first.path.exists()
    again = harness.run(cfg)
    assert (again.status, again.rows) == ("cached", first.rows)
    assert harness.run(tiny(tmp_path, *words, "force=true")).status == "done"
    assert first.path.exists()
    first.path.unlink()
    (tmp_path / "runs" / "runs.parquet").write_text("PAR1 not")
    broken = harness.job(cfg)
    assert (broken.status, broken.code) == ("failed", 1)
    assert "runs.parquet cannot be read" in broken.message


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    from filelock import FileLock

    def error(code: int, *words: str) -> str:
        assert call(*words) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "no run files below" in error(1, "--results", tmp_path / "x", "--compact")
    assert "leave method=uchida out" in error(2, "--results", tmp_path, "--compact", "method=uchida")
    with FileLock(folder / ".compact.lock"):
        assert "another process is compacting" in error(1, "--results", tmp_path, "--compact")
    (tmp_path / "runs" / "runs.parquet").mkdir()
    assert "runs.parquet" in error(1, "--results", tmp_path, "--compact")
    (tmp_path / "runs" / "runs.parquet").rmdir()
    (tmp_path / "runs" / "runs.parquet").write_text("PAR1 not")
    for words in ([], ["--compact"]):
        assert "runs.parquet cannot be read" in error(1, "--results", tmp_path, *words)
    assert loose(folder)


def test_a_foreign_parquet_further_up_is_nobodys_business(folder):
    pd.DataFrame({"x": [1]}).to_parquet(folder.parent / "runs.parquet")
    before = text(read_runs(folder))
    compact.compact(folder)
    assert text(read_runs(folder)) == before


def test_a_parquet_from_before_commands_is_read_and_taken_up(folder, monkeypatch):
    one = sorted(loose(folder))[0]
    content = json.loads(one.read_text())
    one.write_text(json.dumps({name: node for name, node in content.items() if name != "command"}))
    assert read_run(one)["command"] is None
    before = [{**r, "command": None} for r in read_runs(folder)]
    with monkeypatch.context() as patched:
        for module in (compact, parquet):
            patched.setattr(module, "BLOCKS", ("env", "controls", "outputs"))
        patched.setattr(compact, "marshal", type("Equal", (), {"dumps": lambda *args: b""}))
        compact.compact(folder)
    assert not loose(folder)
    assert "command" not in pd.read_parquet(folder / "runs.parquet")
    assert text(read_runs(folder)) == text(before)
    assert read_run(one)["command"] is None
    save(folder.parent, [run("z", "prune", 0, [point()])])
    assert compact.compact(folder).startswith("1 run files gathered")
    assert text(read_runs(folder)[:-1]) == text(before)
    assert read_runs(folder)[-1]["command"] == ["method=z", "attack=prune", "seed=0"]


def test_runs_of_files_have_in_common_what_is_the_same(folder):
    runs = read_runs(folder)
    nodes = [run["config"]["method"] for run in runs]
    assert all((a is b) == (a == b) for a in nodes for b in nodes)
    assert 1 < len({id(node) for node in nodes}) < len(nodes)
    assert all(len({id(row["run_id"]) for row in run["rows"]}) == 1 for run in runs)


def test_files_from_before_a_field_was_there_hold_none_of_it(tmp_path):
    later = ROW_LATER[ROW_LATER.index("auc") :]
    now = save(tmp_path / "now", [run("uchida", "prune", 0, [point()])]) / "runs"
    old = run("uchida", "prune", 0, [point()])
    old["rows"] = [{name: value for name, value in row.items() if name not in later} for row in old["rows"]]
    folder = save(tmp_path / "old", [old]) / "runs"
    assert text(read_runs(folder)) == text(read_runs(now))
    compact.compact(folder)
    file = folder / "runs.parquet"
    pq.write_table(pq.read_table(file).drop_columns(list(later)), file)
    assert text(read_runs(folder)) == text(read_runs(now))
    assert store.load(folder)["auc"].isna().all()
    assert len(store.load(folder)) == len(store.load(now))
