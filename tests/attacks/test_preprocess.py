"""What a service does to queries: the network is as it was, what it sees is not."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attacks.preprocess import KINDS, Filter, behind
from bench import run
from bench.data import changes
from bench.errors import ConfigError
from bench.types import Victim
from tests.helpers import build_attack, config, restoration, rng, snapshots, tiny


def test_weights_keep_values_and_names_and_the_input_is_changed(marked):
    x, model, key = marked("uchida", "preprocess")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    before = model.state_dict()
    seed = int(rng(0).integers(2**62))
    with torch.no_grad():
        for knob, strength, made in snapshots(x, model, key):
            after = made.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert before.keys() == after.keys()
            expected = model(changes.processed(images.float(), knob, strength, seed))
            assert torch.equal(made(images), expected), knob
            assert torch.equal(made(images), made(images))  # the same question, the same answer
    assert not model._forward_pre_hooks.keys() - behind(model, Filter("flip", 1, 0))._forward_pre_hooks.keys()
    assert len(model._forward_pre_hooks) == 1


def test_a_mark_in_weights_is_not_touched_and_rows_say_what_the_change_costs(results):
    rows = run.run(tiny(results, "uchida", "preprocess")).rows[2:]
    assert {row.knob for row in rows} == set(KINDS)
    assert {row.ber for row in rows} == {0.0}
    worst = {row.knob: row.utility_victim - row.utility for row in rows}
    assert worst["flip"] > 5  # a digit is no longer what it was
    mild = next(row for row in rows if (row.knob, row.strength) == ("jpeg", 95))
    assert abs(mild.utility_victim - mild.utility) < 3


def test_whoever_asks_the_network_is_answered_behind_the_change(results):
    rows = {(r.knob, r.strength): r for r in run.run(tiny(results, "trigger", "preprocess")).rows}
    assert rows["none", None].ber == 0
    assert rows["jpeg", 95].ber < rows["jpeg", 10].ber


def test_copies_and_training_keep_the_change(marked):
    x, model, _ = marked("uchida", "chain", "attack.steps=[preprocess,finetune]", *ADDED)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    made = [made for _, _, made in snapshots(x, model, None)]
    one = copy.deepcopy(made[-1]).eval()
    with torch.no_grad():
        assert torch.equal(one(images), one(images.flip(3).flip(3)))
        one_hook = [hook for hook in one._forward_pre_hooks.values() if isinstance(hook, Filter)]
    assert len(one_hook) == 1


ADDED = ("+attack@attack.options.preprocess=preprocess", "attack.options.finetune.epochs=1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("attack.median=[4]", "must be odd"),
        ("attack.depth=[9]", "from 1 to 8"),
        ("attack.flip=[0.5]", "whole number"),
        ("attack.jpeg=[0]", "from 1 to 100"),
    ],
)
def test_strengths_that_are_none(words, said):
    with pytest.raises(ConfigError, match=said):
        build_attack("preprocess", words)


def test_pictures_are_changed_before_they_are_restored(picture_folder, results):
    words = ["method=uchida", "method.n_bits=32", "attack=preprocess", "verify.keys=0", f"results_dir={results}"]
    rows = run.run(config(*restoration(picture_folder), *words)).rows
    made = {row.knob: row for row in rows if row.status == "ok"}
    assert made["blur"].utility != made["none"].utility
    (flip,) = [row for row in rows if row.knob == "flip"]
    assert (flip.status, flip.error) == ("skipped", "what is given would be of another picture")


def test_a_text_has_no_pictures_to_change_and_a_map_is_not_mirrored():
    attack = build_attack("preprocess")
    victim = SimpleNamespace(task=SimpleNamespace(gives="text"))
    assert attack.skip(victim) == "its changes are of pictures: a text has none"
    model = nn.Conv2d(3, 2, 1)
    maps = Victim(model, None, SimpleNamespace(gives="maps"), fresh=None)
    assert attack.skip(maps) is None
    assert {s.knob for s in attack.run(maps, rng(0), None) if s.skipped} == {"flip"}
