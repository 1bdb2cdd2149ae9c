"""python -m bench.check: plug-ins that break a rule each, and one that keeps them all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import controls
from bench.check import __main__ as command
from bench.check import properties, small
from bench.check.properties import Broken
from bench.cli.compose import composed
from methods.uchida import Uchida
from tests.helpers import tiny

READ = Uchida.extract


def touches(self, model, key, task):
    with torch.no_grad():
        model.get_parameter(key.where[0]).mul_(1.001)
    return READ(self, model, key, task)


def draws(self, model, key, task):
    return torch.rand(key.n_bits)


def agrees(self, model, key, task):
    return key.message.float()


@pytest.mark.parametrize(
    ("name", "method", "asked", "expected"),
    [
        ("extract", touches, properties.extraction_repeats_and_leaves_the_suspect, "differ|changes the suspect"),
        ("extract", draws, properties.extraction_repeats_and_leaves_the_suspect, "two extractions .* differ"),
        ("extract", draws, properties.every_bit_is_embedded, "of 64 bits are wrong"),
        ("extract", agrees, properties.hosts_are_not_detected, "the unmarked network verifies: BER 0.000"),
        ("extract", agrees, properties.random_keys_match_by_chance, "by chance 0.5000"),
        ("accepts", lambda self, key: False, properties.every_bit_is_embedded, "refuses the owner's own key"),
        ("chance", lambda self, key: 0.3, properties.random_keys_match_by_chance, "by chance 0.7000"),
    ],
)
def test_a_method_that_breaks_a_rule_is_told_which(monkeypatch, marked, name, method, asked, expected):
    x, model, key = marked("uchida", "none", "verify.keys=40")
    monkeypatch.setattr(Uchida, name, method)
    monkeypatch.setattr(controls, "cached", lambda cache, stage, identity, build, say: build(None))
    with pytest.raises(Broken, match=expected):
        asked(x, model, key)


def test_keys_from_nowhere_and_keys_from_one_seed(monkeypatch, marked):
    victim, drawn = marked("uchida"), Uchida.keygen
    one = drawn(victim[0].method, victim[1], np.random.default_rng(0), victim[0].task)
    monkeypatch.setattr(Uchida, "keygen", lambda self, host, rng, task: one)
    with pytest.raises(Broken, match="does not draw from rng"):
        properties.keys_are_drawn_from_rng_alone(*victim)
    monkeypatch.setattr(Uchida, "keygen", lambda self, h, rng, t: drawn(self, h, np.random.default_rng(), t))
    with pytest.raises(Broken, match="from something beside rng"):
        properties.keys_are_drawn_from_rng_alone(*victim)


def test_an_attack_that_breaks_a_rule_is_told_which(monkeypatch, marked, results):
    victim = marked("uchida", "prune")
    attack = type(victim[0].attack)

    def in_place(self, stolen, rng, fit):
        with torch.no_grad():
            next(stolen.model.parameters()).mul_(0.5)
        yield from ()

    monkeypatch.setattr(attack, "run", in_place)
    with pytest.raises(Broken, match="changes its victim"):
        properties.victims_stay_bit_identical(*victim)
    own = properties.draws
    with own(victim[0]) as drawn:
        next(victim[0].task.view("attacker").batches("attacker", 4))
    assert drawn == [("attacker", "attacker")]
    with pytest.raises(Broken, match="draws nothing from the owner's split"):
        properties.own_draws(drawn)
    with pytest.raises(Broken, match=r"draws from \[.test"):
        properties.own_draws([("owner", "owner"), ("owner", "test")])

    def noisy(self, stolen, rng, fit):
        raise ValueError("no such layer")

    monkeypatch.setattr(attack, "run", noisy)
    with pytest.raises(ValueError, match="no such layer"):
        properties.pairs_run_or_say_why_not(tiny(results, "uchida", "prune", "seed=0", "force=true"))


def test_what_the_command_says(monkeypatch, capsys):
    def broken():
        raise Broken("the host verifies")

    def crashes():
        raise IndexError("list index\nout of range")

    asked = ["method mine", ("bits", lambda: "64 bits"), ("hosts", broken), ("keys", crashes)]
    assert command._told(iter([*asked, ("attack", lambda: "skipped: n/a")]), False) is False
    assert capsys.readouterr().out.splitlines() == [
        "method mine",
        "  ok      bits: 64 bits",
        "  FAILED  hosts: the host verifies",
        "  FAILED  keys: IndexError: list index out of range",
        "  n/a     attack: skipped: n/a",
        "2 of 4 hold",
    ]
    monkeypatch.setattr(command, "_properties", lambda *args: iter(asked[:2]))
    assert command.main(["method=uchida", "attack=none"]) == 0
    monkeypatch.setattr(command, "_properties", lambda *args: iter(asked[:3]))
    assert command.main(["method=uchida", "attack=none"]) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "name a plug-in: method=NAME or attack=NAME"),
        (["method=uchda"], "unknown method 'uchda'; did you mean 'uchida'"),
        (["method=uchida,riga"], "method names one"),
        (["method=uchida", "method.nbits=3"], "method.nbits: no such key; did you mean 'n_bits'"),
    ],
)
def test_what_it_cannot_check_is_one_line(capsys, words, expected):
    assert command.main(words) == 2
    assert expected in capsys.readouterr().err


def test_what_is_said_wins_over_what_is_small():
    assert small.base(["model=resnet18"]) == [word for word in small.TINY if not word.startswith("model")]
    assert small.base(["task=restoration"]) == ["device=cpu"]
    assert "train.epochs=6" not in small.base(["train.epochs=1"])
    assert "n_bits=64" in " ".join(small.small(composed(["method=uchida", "attack=prune"])))
    steps = small.small(composed(["method=uchida", "attack=chain"]))
    assert any(word.startswith("attack.options.") for word in steps)


@pytest.mark.slow
@pytest.mark.quick
def test_a_method_that_keeps_every_rule_passes(capsys, results):
    assert command.main(["method=uchida", "attack=prune", f"results_dir={results}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *["ok"] * 9, "attack", *["ok"] * 3, "12"]
