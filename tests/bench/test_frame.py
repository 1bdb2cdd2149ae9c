"""The frame of every command: one line and an exit status, whatever the machine refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.cli import usage
from bench.errors import UserError, framed
from tests.helpers import ROOT


def shell(line: str, cwd: object = ROOT, **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PY": sys.executable, **env}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def refused(done: subprocess.CompletedProcess, said: str, code: int = 1) -> None:
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a", 2), 2, "error: a\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (OSError(30, "Read-only file system", "results"), 1, "error: results: Read-only file system\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt(), 130, "interrupted: finished runs are kept; the same command goes on\n"),
        (SystemExit("error: refused"), 1, "error: refused\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(), 0, ""),
        (ValueError("of\nours"), 1, "error: ValueError: of ours (debug=true shows where)\n"),
    ],
)
def test_what_ends_a_command_is_a_line_and_a_status(capsys, error, code, said):
    def work() -> int:
        raise error

    assert framed(work, "finished runs are kept", "debug=true") == code
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_is_not_hidden_where_nothing_else_shows_it():
    with pytest.raises(ValueError, match="ours"):
        framed(lambda: int("ours"))


def test_a_full_stdout_is_one_line():
    refused(shell("$PY -m bench --help > /dev/full"), "No space left on device")


def test_a_reader_that_leaves_is_no_error():
    done = shell("$PY -m bench --help | head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode in (0, 1), done.stderr) == (True, "")


def test_a_closed_stdout_is_no_error():
    done = shell("$PY -m bench --help >&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["bench -m method=uchida attack=none", "bench.report", "bench.layers"])
def test_a_working_directory_that_is_gone_is_one_line(tmp_path, command):
    done = shell(f"cd {tmp_path} && mkdir gone && cd gone && rmdir ../gone && $PY -m {command}")
    refused(done, "the working directory is gone; change into one that is there")


def test_a_sweep_that_has_no_place_is_one_line_before_any_job(tmp_path):
    (tmp_path / "file").touch()
    refused(shell("$PY -m bench -m method=uchida attack=none results_dir=file/x", tmp_path), "Not a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_text_that_stdout_does_not_know_is_replaced(tmp_path):
    done = shell("$PY -m bench.report --results rä", tmp_path, PYTHONIOENCODING="ascii")
    refused(done, "no run files below r")
    done = shell(
        "$PY -c 'from bench.errors import framed; framed(lambda: print(chr(228)) or 0)'", PYTHONIOENCODING="ascii"
    )
    assert (done.returncode, done.stdout) == (0, "?\n")


def test_the_end_of_a_sweep_counts_what_it_could_not_say(tmp_path, monkeypatch):
    """Hydra turns a callback's exceptions into warnings: the exit status would be 0."""
    from omegaconf import OmegaConf

    from bench.cli.sweep import Sweep, note

    note(tmp_path, 0, "done", "attack=none", "")
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(SystemExit) as stop:
        Sweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert stop.value.code == 1


@pytest.mark.parametrize(
    ("word", "made"),
    [
        ("results_dir=~/x", "results_dir=/home/me/x"),
        ('cache.root="~/x, y"', 'cache.root="/home/me/x, y"'),
        ("results_dir=~", "results_dir=/home/me"),
        ("results_dir=a~/x", "results_dir=a~/x"),
        ("results_dir=~you/x", "results_dir=~you/x"),
        ("~results_dir", "~results_dir"),
    ],
)
def test_home_is_written_out_before_hydra_makes_folders(monkeypatch, word, made):
    monkeypatch.setenv("HOME", "/home/me")
    assert usage.at_home(word) == made


def test_a_place_whose_parent_is_not_there_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = f"results_dir=/nowhere/deep: {os.sep}nowhere is no folder: make it first, if that is the place"
    assert usage.problem(["-m", "method=uchida", "results_dir=/nowhere/deep"]) == said
    assert usage.problem(["cache.root=/nowhere/deep"]).startswith("cache.root=/nowhere/deep: /nowhere is no folder")
    for fine in (f"results_dir={tmp_path.parent}/new", "results_dir=new/deep/er", "results_dir=/nowhere"):
        assert usage.problem([fine]) == ""
