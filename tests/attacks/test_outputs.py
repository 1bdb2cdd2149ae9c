"""What attacks on outputs state and where they are skipped."""

from __future__ import annotations

import pytest

from bench import run, spec, stages
from bench.types import Victim
from tests.helpers import config, restoration


@pytest.mark.parametrize("attack", ["postprocess", "residual"])
def test_no_change_of_outputs_touches_what_is_read_from_weights(picture_folder, results, attack):
    x = run.prepare(config(*restoration(picture_folder), "method=uchida", f"attack={attack}", f"results_dir={results}"))
    victim = Victim(stages.fresh(x), x.method, x.task.view("attacker"))
    assert x.attack.skip(victim) == "the mark is read from weights, which no change of outputs touches"


def test_attacks_on_outputs_state_that_they_need_no_weights():
    for name in ("surrogate", "postprocess", "residual", "distill"):
        attack = spec.build(config("task=restoration", f"attack={name}").attack, "attack")
        assert attack.needs == ("outputs",)
        assert attack.knows == ["outputs"]
    twin = spec.build(config("task=restoration", "attack=surrogate").attack, "attack").twin
    assert twin.surrogates == ["same/l2"]
    assert twin.twin is None
