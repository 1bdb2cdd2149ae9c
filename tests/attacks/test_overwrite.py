"""Overwriting: the attacker's own mark, with and without training."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import judge, metrics, run, spec, threat
from bench.errors import ConfigError
from bench.train import Fit
from tests.helpers import BY_POSITION, build_attack, first, snapshots, tiny

CLOSED = ("attack.mode=closed_form", "attack.data=none")


@pytest.mark.slow
@pytest.mark.quick
def test_overwrite_reaches_its_own_mark_with_its_own_key(results):
    rows = run.run(tiny(results, "uchida", "overwrite", "attack.epochs=20", "method.n_bits=90")).rows
    points = [r for r in rows if r.knob.startswith("lambda")]
    assert [(r.knob, r.strength) for r in points] == [("lambda factor, lr 0.003", f) for f in (1, 10)]
    assert any(r.claim_ber == 0 and r.claim_detected for r in points)


def test_writing_over_a_module_needs_no_training(results):
    rows = {r.knob: r for r in run.run(tiny(results, "frequency", "overwrite", "method.n_bits=100")).rows}
    row = rows["no training"]
    assert (row.claim_ber, row.claim_detected, row.detected) == (0, True, False)
    assert abs(row.utility - row.utility_victim) < 0.6


def test_the_strength_of_an_overwriting_module_is_the_attackers(marked):
    x, model, _ = marked("frequency", "overwrite", "attack.epochs=1", "attack.lrs=[0.001]", "attack.factors=[1,10]")
    made = {strength: other for knob, strength, other in snapshots(x, model, None) if knob != "no training"}
    spread = {factor: float(x.method.components(other).detach().std()) for factor, other in made.items()}
    assert spread[10] / spread[1] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("method", ["uchida", "neuralmark"])
def test_a_mark_is_written_over_without_data_or_training(results, method):
    # Of 128 bits not all would do for NeuralMark: its boundary is 2^-128, and inverted bits count as well.
    words = ("method.n_bits=144", *(["method.k=256"] if method == "neuralmark" else []))
    row = run.run(tiny(results, method, "overwrite", *CLOSED, "attack.keys=[1]", *words)).rows[-1]
    assert (row.knob, row.strength, row.claim_ber, row.claim_detected) == ("keys", 1, 0, True)
    assert row.detected
    assert row.ber < 0.05  # of a layer that hardly holds two marks
    assert row.utility_victim - row.utility <= 0.6  # one of 180 pictures


# Of greedy there is one residual a bit, for one message; what deepsigns reads depends on the layers before, too.
@pytest.mark.parametrize("method", first([m for m in BY_POSITION if m not in ("greedy", "deepsigns")]))
def test_five_keys_written_in_turn_all_read(marked, method):
    few = [] if method in ("frequency", "watermas") else ["method.n_bits=16"]  # five times 64 are more than the weights
    x, model, owner = marked(method, "overwrite", *CLOSED, "attack.keys=[5]", *few)
    before = copy.deepcopy(model.state_dict())
    (point,) = x.attack.run(threat.stolen(x, model, owner), np.random.default_rng(0), Fit(x.train, 0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    draws = np.random.default_rng(0)
    keys = [x.method.keygen(model, draws, x.task) for _ in range(5)]
    assert all(judge.judged(x, model, key)[0] > 0.1 for key in keys)  # nothing was there before
    assert [judge.judged(x, point.model, key)[0] for key in keys] == [0] * 5
    assert all(x.method.accepts(key) for key in keys)
    assert any(torch.equal(point.claim.message, key.message) for key in keys)
    assert judge.judged(x, point.model, owner)[0] < 0.1


def test_later_keys_that_spoil_earlier_ones_show_in_the_claim(marked):
    """More bits than there are weights to read them from."""
    x, model, owner = marked("uchida", "overwrite", *CLOSED, "attack.keys=[12]")
    (point,) = x.attack.run(threat.stolen(x, model, owner), np.random.default_rng(0), Fit(x.train, 0))
    draws = np.random.default_rng(0)
    keys = [x.method.keygen(model, draws, x.task) for _ in range(12)]
    errors = [judge.judged(x, point.model, key)[0] for key in keys]
    assert min(errors) < max(errors)
    assert judge.judged(x, point.model, point.claim)[0] == max(errors)


def test_training_hashes_as_it_did_and_needs_its_data():
    made = build_attack("overwrite")
    old = {k: v for k, v in vars(made).items() if k not in ("mode", "keys", "transfer", "margin")}
    assert spec.canonical(made) == {"class": "attacks.overwrite.Overwrite", **spec.canonical(old)}
    assert spec.canonical(build_attack("overwrite", *CLOSED))["mode"] == "closed_form"
    assert spec.digest(replace(made, keys=[2])) != spec.digest(made)
    with pytest.raises(ConfigError, match="closed_form"):
        build_attack("overwrite", "attack.data=none")
    with pytest.raises(ConfigError, match="must be from 1 to"):
        build_attack("overwrite", *CLOSED, "attack.keys=[0]")


def other_data(folder: Path) -> list[str]:
    """Words for two classes that any network tells apart: dark and bright noise."""
    draws = np.random.default_rng(0)
    for part, n in (("train", 200), ("test", 40)):
        for low, name in ((0, "dark"), (128, "bright")):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = draws.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return ["data@attack.transfer=imagefolder", f"attack.transfer.path={folder}", "attack.transfer.label=light"]


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("method", ["uchida", "frequency"])
def test_overwriting_on_other_data_gets_a_new_head_and_no_damage(results, tmp_path, method):
    words = other_data(tmp_path / "light")
    cfg = tiny(results, method, "overwrite", *words, "attack.factors=[1,100]", "attack.epochs=3")
    x, here = run.prepare(cfg), run.prepare(tiny(results, method, "overwrite"))
    assert x.other.view("attacker").size("attacker") == 360  # all but validation
    assert (x.mark_identity, x.run_id != here.run_id) == (here.mark_identity, True)
    rows = {(r.knob, r.strength): r for r in run.run(cfg).rows}
    still = rows["no training", None]  # nothing was trained: the victim's own data and head
    assert (still.utility_name, still.utility_victim) == ("top1", rows["none", None].utility)
    points = [r for (knob, _), r in rows.items() if knob.startswith("lambda")]
    assert [r.strength for r in points] == [1, 100]
    for row in points:
        assert (row.utility_name, row.utility_victim, metrics.damage(vars(row))) == ("top1@light", None, None)
        assert row.utility > 85  # of two classes, 50 is chance
        assert row.claim_ber is not None
        verdicts = ("ambiguous", "later claim", "overwritten", "survived", "lost")
        assert metrics.verdict(vars(row), "overwrite", 5.0) in verdicts
    assert points[1].claim_ber < 0.3  # the attacker's own mark is being written: of 64 bits chance is 0.5 ± 0.06


def test_other_data_are_for_what_trains():
    with pytest.raises(ConfigError, match=r"trains on no data: attack.transfer=null"):
        build_attack("overwrite", *CLOSED, "data@attack.transfer=cifar100")
    assert spec.canonical(build_attack("overwrite", "data@attack.transfer=cifar100"))["transfer"]["label"] == "cifar100"
    assert "transfer" not in spec.canonical(build_attack("overwrite"))


def test_who_asks_for_little_margin_writes_over_greedy_for_less(results):
    """Its residuals are public, and a sign is all that is read."""
    made = {}
    for margin in (1.0, 0.05):
        made[margin] = run.run(
            tiny(results, "greedy", "overwrite", *CLOSED, "attack.keys=[1]", f"attack.margin={margin}")
        ).rows[-1]
    for row in made.values():
        assert row.claim_ber == 0
        assert row.ber > 0.3
        assert not row.detected
    assert made[0.05].utility > made[1.0].utility + 2
