"""Progress: stages make the steps they announce, and being watched changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bench import run, stages
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
