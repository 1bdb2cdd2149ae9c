"""Cutting a module off."""

from __future__ import annotations

from bench import judge, stages
from tests.helpers import changed, snapshots


def test_a_cut_leaves_the_network_without_its_module(marked):
    x, model, key = marked("frequency", "cut", "attack.epochs=1")
    (_, zero, gone), (_, one, tuned) = snapshots(x, model, None)
    assert (zero, one) == (0, 1)
    assert set(gone.state_dict()) == set(stages.fresh(x).state_dict())
    assert not any(share for name, share in changed(model, gone).items())
    assert judge.judged(x, gone, key) == (0.5, 0.0, False)
    assert any(changed(gone, tuned).values())
