"""Fine-tuning: what each mode moves, and other data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from bench import metrics, run, spec
from tests.helpers import build_attack, fit, tiny, victim, weights_of


@pytest.mark.parametrize("mode", ["ftal", "ftll", "rtal", "rtll"])
def test_finetune_changes_only_what_its_mode_names(marked, mode):
    x, model, key = marked("uchida")
    before, head = copy.deepcopy(model.state_dict()), x.task.head(model)
    it = build_attack("finetune", f"attack.mode={mode}", "attack.epochs=2")
    snapshots = []
    for s in it.run(victim(x, model, key), np.random.default_rng(0), fit(x)):
        snapshots.append((s.knob, s.strength))
        after = s.model.state_dict()
    assert snapshots == [("epoch", 1), ("epoch", 2)]
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert f"{head}.weight" in moved
    inside = {k for k in after if k.startswith(f"{head}.")}
    if mode.endswith("ll"):
        assert moved <= inside
    else:
        assert moved - inside  # normalisation statistics too
        assert key.where[0] in moved
    if mode.startswith("rt"):
        start = before[f"{head}.weight"]
        assert torch.corrcoef(torch.stack([start.flatten(), after[f"{head}.weight"].flatten()]))[0, 1] < 0.9


@pytest.mark.slow
@pytest.mark.quick
def test_finetune_on_other_data_gets_a_new_head_and_no_damage(results, tmp_path):
    from PIL import Image

    # Two classes that any network tells apart: dark and bright noise.
    draws = np.random.default_rng(0)
    for part, n in (("train", 200), ("test", 40)):
        for low, name in ((0, "dark"), (128, "bright")):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = draws.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "d" / part / name / f"{i}.png")
    words = [
        "data@attack.transfer=imagefolder",
        f"attack.transfer.path={tmp_path / 'd'}",
        "attack.transfer.label=light",
    ]
    cfg = tiny(results, "uchida", "finetune", *words, "attack.epochs=3")
    x = run.prepare(cfg)
    assert x.other.view("attacker").size("attacker") == 360  # all but validation
    rows = run.run(cfg).rows
    last = rows[-1]
    assert last.utility_name == "top1@light"
    assert last.utility_victim is None
    assert last.utility > 85  # of two classes, 50 is chance
    assert metrics.verdict(vars(last), "removal", 5.0) in ("survived", "lost")
    # the same content elsewhere is the same run, other content is not
    (tmp_path / "d").rename(tmp_path / "e")
    moved = tiny(results, "uchida", "finetune", words[0], f"attack.transfer.path={tmp_path / 'e'}", "attack.epochs=3")
    assert run.prepare(moved).hashes == x.hashes
    (tmp_path / "e" / "train" / "dark" / "0.png").unlink()
    assert run.prepare(moved).hashes != x.hashes


def points(x, model, key, fit, *words):
    attack = build_attack("finetune", *words)
    return [(s.strength, weights_of(s.model)) for s in attack.run(victim(x, model, key), np.random.default_rng(0), fit)]


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_smooth_is_training_on_smoothed_labels(marked):
    x, model, key = marked("uchida")
    ((_, made),) = points(x, model, key, fit(x), "attack.mode=smooth", "attack.epochs=1")
    wanted, how = copy.deepcopy(model), build_attack("finetune").schedule(1)
    fit(x)(wanted, x.task.view("attacker").smoothed(0.3), **how)
    assert same(made, weights_of(wanted))
    ((_, hard),) = points(x, model, key, fit(x), "attack.epochs=1")
    assert not same(made, hard)


def test_regularise_shrinks_weights_first_and_stops_when_nothing_is_gained(marked, monkeypatch):
    from bench.tasks.classification import ClassificationTask

    x, model, key = marked("uchida")
    told, asked = iter([90.0, 91.0, 91.0, 90.0, 90.0]), []

    def utility(self, net, split="test"):
        asked.append((self.role, split))
        return next(told)

    monkeypatch.setattr(ClassificationTask, "utility", utility)
    words = ["attack.mode=regularise", "attack.epochs=50", "attack.decay_epochs=2", "attack.patience=2"]
    made = points(x, model, key, fit(x), *words, "attack.lr=0.003")
    assert [epoch for epoch, _ in made] == [1, 2, 3, 4, 5]  # 91 after the third; the two after it gain nothing
    assert set(asked) == {("attacker", "validation")}

    def size(found):
        return sum(float(w.square().sum()) for w in found.values())

    plain = points(x, model, key, fit(x), "attack.epochs=2", "attack.lr=0.003")
    assert size(made[1][1]) < size(plain[1][1])
    free = points(x, model, key, fit(x), *words, "attack.lr=0.003", "attack.decay=0", "attack.epochs=2")
    assert same(free[1][1], plain[1][1])


def test_the_modes_that_were_keep_their_identity():
    assert not {"smoothing", "decay", "decay_epochs", "patience"} & set(spec.canonical(build_attack("finetune")))
