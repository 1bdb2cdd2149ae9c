"""What people see: progress on a terminal and plain lines off it, a table that fits, NO_COLOR, and a sane terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import metrics
from bench.cli import terminal
from bench.types import Row
from tests.fake_runs import plausible, save
from tests.helpers import ROOT, TINY

ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


COLOURS = {*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108)}


HIDDEN = "\x1b[?25l"


def on_terminal(*words: str, until: str = "", stdout: Path | None = None, **env: str) -> tuple[int, str]:
    """(exit status, all that a pseudo-terminal got) of a Python command; SIGINT once `until` was printed there."""
    outer, inner = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "80", **env}
    with open(stdout or os.devnull, "wb") as file:
        out = file if stdout else inner
        process = subprocess.Popen([sys.executable, *words], stdin=inner, stdout=out, stderr=inner, env=env, cwd=ROOT)
    os.close(inner)
    said = b""
    with open(outer, "rb", buffering=0) as screen:
        while True:
            try:
                said += screen.read(65536)
            except OSError:  # the other end is closed
                break
            if until and until.encode() in said:
                process.send_signal(signal.SIGINT)
                until = ""
    return process.wait(60), said.decode()


def colours(text: str) -> set[int]:
    """The colour codes among a text's escape sequences; bold and dim are none."""
    codes = [code for code, letter in ESCAPE.findall(text) if letter == "m"]
    return {int(n) for code in codes for n in code.split(";") if n} & COLOURS


def last_screen(text: str) -> str:
    """What a line of the terminal shows at the end: erased lines are gone."""
    return ESCAPE.sub("", text.replace("\r\x1b[2K", "\x00").rpartition("\x00")[2])


def rows(claims: bool) -> list[Row]:
    """The widest rows there are: long knobs, four digits before the point, a skipped point."""
    known = {"run_id": "x", "method": "neuralmark", "attack": "overwrite", "model": "resnet18", "data": "digits"}
    known |= {"seed": 0, "n_bits": 256, "utility_name": "top1", "utility_victim": 99.16, "utility_host": 99.44}
    out = [
        Row(**known, knob="host", ber=0.496, log10_p=-0.3, detected=False, utility=99.44),
        Row(**known, knob="none", ber=0.0, log10_p=-77.1, detected=True, utility=99.16),
    ]
    claim = {"claim_ber": 0.002, "claim_log10_p": -76.2, "claim_detected": True} if claims else {}
    for lr in ("0.001", "0.0001"):
        for factor in (1, 10, 1000):
            values = {"ber": 0.012, "log10_p": -70.1, "detected": True, "utility": 98.33, **claim}
            out.append(Row(**known, knob=f"lambda factor, lr {lr}", strength=factor, **values))
    return [*out, Row(**known, knob="bits/dynamic-int8", strength=8, status="skipped", error="no linear layer")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_asked_of_bits_that_match_by_another_chance_than_one_half():
    made = [replace(row, chance=0.15, claim_chance=0.1) for row in rows(True)]
    said = "\n".join(terminal.notes(made, "forge", 1e-9, None, None, 2.0**-80))
    need, claim = metrics.matches_needed(256, 1e-9, 1, 0.15), metrics.matches_needed(256, 2.0**-80, 1, 0.1)
    assert f"p <= 1e-09, {need} of 256 bits (of which 0.15 match by chance)" in said
    assert f"claims verify: p <= 8.3e-25, {claim} of 256 bits" in said
    assert "178" not in said


@pytest.mark.parametrize("claims", [False, True])
@pytest.mark.parametrize("width", [80, 60, None])
def test_the_table_fits_and_cuts_no_number_off(monkeypatch, width, claims):
    monkeypatch.setattr(sys, "stdout", Terminal() if width else io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width or 300))  # in a pipe it is 80, whatever the terminal is
    terminal.table(rows(claims), "overwrite" if claims else "removal", 1e-9, 5.0, 2.9e-39)
    lines = ESCAPE.sub("", sys.stdout.getvalue()).splitlines()
    assert max(map(len, lines)) <= (width or 80)
    text = "\n".join(lines)
    assert "…" not in text
    heads = [line.split()[1:] for line in lines if "strength" in line]
    assert len(heads) == (2 if width == 60 else 1)  # columns that do not fit are below the others
    numbers = ["0.012", "-70.1", *["0.002", "-76.2"] * claims, "98.33", "0.83", "ambiguous" if claims else "survived"]
    found = [words[-len(numbers) - 1 :] for line in lines if (words := line.split())[-1:] == numbers[-1:]]
    if width != 60:
        assert [words for words in found if "98.33" in words] == [[f"{at:g}", *numbers] for at in (1, 10, 1000) * 2]
    for number in numbers:
        assert len(re.findall(rf" {re.escape(number)}(?= |$)", text, re.M)) >= 6
    assert len(re.findall(r"\b0\.001\b", text)) == len(heads)


@pytest.mark.parametrize("off", [{"TERM": "dumb"}, {"TERM": ""}, {}])
def test_off_a_terminal_there_are_plain_lines_only(monkeypatch, off):
    screen = Terminal() if off else io.StringIO()
    monkeypatch.setenv("TERM", off.get("TERM", "xterm") or "dumb")
    if off.get("TERM") == "":
        monkeypatch.delenv("TERM")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.live("[1/2] ") as (say, progress), progress("training", 3) as done:
        done()
        say("  epoch 1 of 3: loss 0.5")
    assert screen.getvalue() == "  epoch 1 of 3: loss 0.5\n"


STAGE = """
import time
from bench.cli import terminal
from bench.types import Row
with terminal.live("[2/3] ") as (say, progress):
    with progress("short", 2) as done:
        done()
    with progress("mark: training", 4) as done, progress("unknown", None):
        for step in range(4):
            done()
            say(f"line {step} [red]" + "x" * 90)
            time.sleep(0.8)
row = {"run_id": "x", "method": "uchida", "attack": "prune", "model": "resnet18", "data": "digits", "seed": 0}
terminal.table([Row(**row, knob="none", n_bits=64, ber=0.0, log10_p=-19.3, detected=True)], "removal", 1e-9, 5.0)
"""


@pytest.mark.parametrize("plain", [False, True])
def test_progress_and_table_on_a_terminal_and_no_color(plain):
    code, said = on_terminal("-c", STAGE, **({"NO_COLOR": "1"} if plain else {}))
    assert code == 0
    assert bool(colours(said)) is not plain
    assert re.search(r"\[2/3\] mark: training .* 75% .*0:00:0\d.* left: \d:\d\d:\d\d", ESCAPE.sub("", said))
    assert "[2/3] unknown" in said
    assert "short" not in said  # it took no second
    assert HIDDEN not in said
    for step in range(4):  # lines are whole, and no markup
        assert f"line {step} [red]{'x' * 90}" in said
    assert "mark: training" not in last_screen(said)
    assert last_screen(said).lstrip("\r\n").startswith("uchida on resnet18")


@pytest.mark.parametrize("plain", [False, True])
def test_reports_tables_respect_no_color(tmp_path, plain):
    save(tmp_path, plausible(seeds=(0, 1), attacks=("none", "prune")))
    words = ["--results", str(tmp_path), "--formats", "svg"]
    code, said = on_terminal("-m", "bench.report", *words, **({"NO_COLOR": "1"} if plain else {}))
    assert code == 0, said
    assert "survived" in said
    assert bool(colours(said)) is not plain


def test_help_has_no_escapes_on_a_terminal():
    code, said = on_terminal("-m", "bench", "--help")
    assert code == 0
    assert "\x1b" not in said
    assert "python -m bench method=NAME" in said


@pytest.mark.slow
@pytest.mark.quick
def test_a_sweep_shows_its_jobs_and_stdout_is_the_tables(tmp_path):
    words = [*TINY, "train.epochs=3", "method=none", "attack=noise,none", "attack.seed=0", f"results_dir={tmp_path}"]
    code, said = on_terminal("-m", "bench", "-m", *words, stdout=tmp_path / "stdout")
    assert code == 0, said
    assert re.findall(r"^\[(\d/\d)\] model=timm", said, re.M) == ["1/2", "2/2"]
    assert re.search(r"\[1/2\] host: training .*%.* left: ", ESCAPE.sub("", said))
    assert "host: training test_resnet on digits" in said  # the plain line
    assert HIDDEN not in said
    printed = (tmp_path / "stdout").read_text()
    assert "\x1b" not in printed
    assert printed.count("none on test_resnet, digits, seed 0") == 2
    assert "done 2, cached 0" in printed


@pytest.mark.slow
@pytest.mark.quick
def test_an_interrupted_run_leaves_the_terminal_sane(tmp_path):
    words = [*TINY, "train.epochs=1000", "method=none", "attack=none", f"results_dir={tmp_path}"]
    code, said = on_terminal("-m", "bench", *words, until="left: ")
    assert code == 130
    assert HIDDEN not in said
    assert last_screen(said).strip().startswith("interrupted: ")
    assert "Traceback" not in said


def test_a_step_costs_nothing_that_redraws(monkeypatch):
    """However many steps, what is drawn is drawn by time."""
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.live() as (_, progress), progress("training", 10**5) as done:
        before = screen.tell()
        for _ in range(10**5):
            done()
        assert screen.tell() - before < 1000
        time.sleep(2.2)
        assert "100%" in screen.getvalue()
