"""Components of the frequency method before and after, on a real mark."""

from __future__ import annotations

import pytest
import torch

from bench import run
from bench.errors import ConfigError, UserError
from bench.studies import invariance
from methods.frequency import KERNELS, Frequency
from tests.helpers import tiny


@pytest.mark.slow
@pytest.mark.quick
def test_components_of_a_real_mark(results):
    cfg = tiny(results, "frequency", "finetune", "attack.epochs=2")
    found = invariance.fine_tuned(cfg)
    # What rounding did in float32 is gone in float64, but for the basis, which is kept in float32.
    assert found["components_double"] < 1e-8 < found["components"] < 1e-5
    assert found["trained"] > 1e-3
    assert 0 < found["decay"] < 1e-3
    assert found["steps"] == 2 * (run.prepare(cfg).task.size("attacker") // 64)
    assert invariance.rearranged(cfg)["difference"] < 1.2e-6


@pytest.mark.slow
@pytest.mark.quick
def test_a_fine_tuning_that_reaches_the_components_is_seen(results, monkeypatch):
    from attacks.finetune import Finetune

    honest = Finetune.run

    def dishonest(self, victim, rng, fit):
        for snapshot in honest(self, victim, rng, fit):
            with torch.no_grad():
                kernels = snapshot.model.get_parameter(KERNELS)
                kernels += 1e-3 * kernels.std() * torch.randn(kernels.shape, generator=torch.Generator().manual_seed(0))
            yield snapshot

    monkeypatch.setattr(Finetune, "run", dishonest)
    # A learning rate of its own: what is measured here is cached under its run.
    found = invariance.fine_tuned(tiny(results, "frequency", "finetune", "attack.epochs=1", "attack.lr=0.000301"))
    assert found["components_double"] > 1e-4


def test_it_is_fine_tuned_by_the_attacker_of_the_run(results, monkeypatch):
    from attacks.finetune import Finetune

    class Stop(Exception):
        pass

    seen = []

    def look(self, victim, rng, fit):
        seen.append((victim, rng.bit_generator.state, fit.seed))
        raise Stop

    monkeypatch.setattr(Finetune, "run", look)
    cfg = tiny(
        results, "frequency", "finetune", "attack.epochs=1", "attack.lr=0.000303", "attack.knows=[weights,layer]"
    )
    with pytest.raises(Stop):
        invariance.fine_tuned(cfg)
    with pytest.raises(Stop):
        list(run.rows(run.prepare(cfg)))
    (here, *draws), (there, *others) = seen
    assert draws == others
    assert here.where == there.where is not None
    assert (here.key, here.other) == (there.key, there.other) == (None, None)
    assert here.fresh is not None
    assert vars(here.task).keys() == vars(there.task).keys()
    assert here.task.train == there.task.train


@pytest.mark.parametrize(
    ("method", "attack", "said"),
    [("uchida", "finetune", "no frequency module"), ("frequency", "none", "compared after attack=finetune")],
)
def test_components_of_what_has_none(tmp_path, method, attack, said):
    with pytest.raises(ConfigError, match=said):
        invariance.fine_tuned(tiny(tmp_path, method, attack))


def test_components_that_are_no_numbers_are_said(results, monkeypatch):
    cfg = tiny(results, "frequency", "finetune", "attack.epochs=1", "attack.lr=0.000302")
    monkeypatch.setattr(Frequency, "parts", lambda self, model: (torch.full((2, 2, 8), torch.nan), torch.ones(2, 2, 9)))
    with pytest.raises(UserError, match="no numbers"):
        invariance.fine_tuned(cfg)
