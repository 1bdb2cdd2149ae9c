"""Progress: stages make the steps they announce, and being watched changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bench import progress, run, stages
from bench.train import Fit
from tests.helpers import tiny


@contextmanager
def _counted(stages: list, what: str, total: int | None) -> Iterator:
    stage = [what, total, 0]
    stages.append(stage)

    def done() -> None:
        stage[2] += 1

    yield done


@pytest.mark.parametrize("attack", ["prune", "noise", "quantize", "finetune", "shift"])
def test_every_stage_makes_the_steps_it_announced(results, attack):
    stages: list[list] = []
    cfg = tiny(results, "uchida", attack, "force=true")
    outcome = run.job(cfg, progress=lambda what, total: _counted(stages, what, total))
    assert outcome.status == "done", outcome.message
    assert all(total in (None, steps) for what, total, steps in stages if what != "measuring"), stages
    (points,) = [stage for stage in stages if stage[0] == attack]
    assert points[2] == len([row for row in outcome.rows if row.knob not in ("host", "none")])
    assert (points[1] is None) is (attack in ("quantize", "finetune"))
    assert any(what == "training" for what, *_ in stages) is (attack in ("finetune", "shift"))


def test_being_watched_changes_no_weight(results):
    x = run.prepare(tiny(results, "none", "none", "train.epochs=2"))
    heard: list = []
    watched = Fit(x.train, 7, progress=lambda what, n: _counted(heard, what, n), log=lambda *loss: heard.append(loss))
    models = [fit(stages.fresh(x), x.task.view("owner")) for fit in (Fit(x.train, 7), watched)]
    a, b = (model.state_dict() for model in models)
    assert all(torch.equal(a[name], b[name]) for name in a)
    (_, total, steps), *losses = heard
    assert total == steps > 0
    assert [epoch for epoch, _ in losses] == [1, 2]
    assert losses[0][1] > losses[1][1] > 0


def wait(lines: list[str], count: int) -> None:
    """Until so many lines were said, or much longer than they take."""
    until = time.monotonic() + 20
    while len(lines) < count and time.monotonic() < until:
        time.sleep(0.005)


def test_what_takes_long_is_told_early_and_once():
    lines: list[str] = []
    with progress.spoken(lines.append, look=0.005) as (_, stage):
        with stage("random keys", 100_000) as step:
            for _ in range(2000):
                step()
                time.sleep(0.001)
            wait(lines, 1)
        assert len(lines) == 1
        assert lines[0].startswith("  random keys: ")
        assert " of 100,000, about " in lines[0]
        with stage("random keys", 2000) as step:  # seconds: not worth a word
            for _ in range(1000):
                step()
                time.sleep(0.001)
    assert len(lines) == 1


def test_steps_that_were_done_before_say_nothing_about_the_rest():
    lines: list[str] = []
    with progress.spoken(lines.append, look=0.005) as (_, stage), stage("training", 10_000) as step:
        for _ in range(9000):  # a checkpoint's, all at once
            step()
        time.sleep(0.05)
        assert not lines
        for _ in range(12):
            step()
            time.sleep(0.05)
        wait(lines, 1)
    assert "9,01" in lines[0]
    assert "about 4" in lines[0] or "about 5" in lines[0] or "about 6" in lines[0]


@pytest.mark.parametrize(("stage", "said"), [(None, "  still at work"), ("measuring", "  measuring: 0 s so far")])
def test_nothing_stays_silent(monkeypatch, stage, said):
    monkeypatch.setattr(progress, "PAUSE", 0.2)
    lines: list[str] = []
    with progress.spoken(lines.append, look=0.005) as (say, began):
        say("first")
        if stage:
            with began(stage, None):
                wait(lines, 3)
        else:
            wait(lines, 3)
    assert lines[0] == "first"
    assert lines[1:3] == [said] * 2
    assert not [line for line in lines[1:] if not line.startswith(said[:12])]


def test_after_the_end_nothing_is_said(monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.05)
    lines: list[str] = []
    spoken = progress.spoken(lines.append, look=0.005)
    with pytest.raises(ValueError, match="why"), spoken as (_, stage), stage("training", None):
        raise ValueError("why")
    count = len(lines)
    time.sleep(0.2)
    assert len(lines) == count


def test_nested_stages_end_in_any_order(monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.05)
    lines: list[str] = []
    with progress.spoken(lines.append, look=0.005) as (_, stage):
        outer, inner = stage("attack", 3), stage("training", 3)
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        wait(lines, 1)
        inner.__exit__(None, None, None)
    assert lines[0].startswith("  training: ")
