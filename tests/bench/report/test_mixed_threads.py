"""Replicates of one cell that were made with different numbers of CPU threads."""

from __future__ import annotations

from bench.report.content import assemble
from bench.report.page.page import page
from bench.report.threads import mixed
from bench.store.compact import compact
from bench.store.runs import read_runs
from tests.fake_runs import call, no_figures, point, run, save


def said(runs: list[dict]) -> str:
    content = assemble(runs)
    return mixed(content.runs, content.rows)


def made(*threads: int | None, device: str = "cpu", env: bool = False) -> list[dict]:
    runs = [
        run("uchida", "prune", s, [point()], threads=None if env else n, device=device) for s, n in enumerate(threads)
    ]
    for one, n in zip(runs, threads, strict=True):
        one["env"] = {"threads": n} if env else {}
    return runs


def test_a_cell_of_several_thread_counts_is_named():
    line = "replicates made with 1, 2 CPU threads in one cell, which differ by more than their seed: "
    assert said(made(1, 2, 2)) == f"{line}uchida under prune on mlp, digits"
    assert said(made(1, 2, env=True)) == f"{line}uchida under prune on mlp, digits"  # rows of before it was noted


def test_one_count_none_and_gpus_are_no_matter():
    assert said(made(2, 2)) == said(made(None, None)) == said(made(2, None)) == ""
    assert said(made(1, 2, device="NVIDIA")) == ""
    assert said([*made(1, 1), run("uchida", "noise", 0, [point("sigma")], threads=2)]) == ""


def test_the_report_says_it_where_it_is_read(tmp_path, monkeypatch, capsys):
    no_figures(monkeypatch)
    runs = made(1, 2)
    assert call("--results", save(tmp_path, runs), "--formats", "svg") == 0
    assert "warning: replicates made with 1, 2 CPU threads" in capsys.readouterr().err
    assert "replicates made with 1, 2 CPU threads" in page(assemble(runs), [tmp_path], None)


def test_rows_keep_it_in_a_parquet_and_older_ones_have_none(tmp_path):
    runs = made(1, 2)
    for row in runs[1]["rows"]:
        del row["threads"]
    folder = save(tmp_path, runs) / "runs"
    before = read_runs(folder)
    assert [row["threads"] for found in before for row in found["rows"]] in ([1] * 3 + [None] * 3, [None] * 3 + [1] * 3)
    compact(folder)
    assert read_runs(folder) == before
