"""Attacks in sequence: each step on what the one before left, the threat model of all, their seconds."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from bench import run, spec, threat
from bench.errors import ConfigError
from bench.report import words as report_words
from bench.types import Attack, Snapshot
from tests.helpers import build_attack, fit, rng, tiny, victim, weights_of


def chain(*words: str):
    return build_attack("chain", "attack.options.finetune.epochs=2", *words)


def points(attack, victim, fit):
    """(knob, strength, copy of the weights, snapshot) of all points."""
    return [(s.knob, s.strength, weights_of(s.model), s) for s in attack.run(victim, rng(), fit)]


def test_a_chain_is_its_steps_one_after_the_other_bit_for_bit(marked):
    x, model, key = marked("uchida")
    before = copy.deepcopy(model.state_dict())
    robbed, loop, draws = victim(x, model, key), fit(x), rng()

    def at(step: int):
        return loop.seeded(spec.derive(loop.seed, "step", step))

    for s in build_attack("permute").run(robbed, draws, at(0)):
        left = copy.deepcopy(s.model)
    tuned = build_attack("finetune", "attack.epochs=2")
    by_hand = [weights_of(s.model) for s in tuned.run(replace(robbed, model=left), draws, at(1))]

    found = points(chain(), robbed, loop)
    assert [(knob, strength) for knob, strength, *_ in found] == [
        ("permute scale 4 > epoch", 1),
        ("permute scale 4 > epoch", 2),
    ]
    for (_, _, made, _), wanted in zip(found, by_hand, strict=True):
        assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_point_to_go_on_from_is_the_one_that_is_named(marked):
    x, model, key = marked("uchida")
    robbed = victim(x, model, key)
    words = ["attack.steps=[quantize,prune]", "attack.options.prune.ratios=[0.5]"]
    last, named = chain(*words), chain(*words, '+attack.at.quantize="bits/tensor 3"')
    assert [knob for knob, *_ in points(last, robbed, fit(x))] == ["quantize bits/channel 2 > ratio"]
    ((knob, strength, made, _),) = points(named, robbed, fit(x))
    assert (knob, strength) == ("quantize bits/tensor 3 > ratio", 0.5)
    assert not report_words.knob("prune ratio 0.5 > bits/tensor", {}).rises  # of its last step
    assert len(made[key.where[0]].unique()) <= 7  # of the 2^3 - 1 levels those that pruning left
    wrong = chain(*words, '+attack.at.quantize="bits/tensor 5"')
    with pytest.raises(ConfigError, match=r"bits/tensor 5: no such point; valid: bits/tensor 8, .*bits/channel 2$"):
        points(wrong, robbed, fit(x))


def test_an_attacker_knows_exactly_what_the_steps_know(marked, results):
    words = ["attack.steps=[noise,meanfill]", "attack.options.noise.scope=marked"]
    words.append("attack.options.noise.knows=[weights,layer]")
    x = run.prepare(tiny(results, "uchida", "chain", *words))
    assert x.attack.knows == ["weights", "layer", "method"] == list(x.cfg.attack.knows)
    assert x.attack.data == "none" == x.cfg.attack.data
    assert set(x.attack.needs) == {"weights", "method"}
    _, model, key = marked("uchida")
    assert threat.stolen(x, model, key).task.role == "outsider"
    x = run.prepare(tiny(results, "uchida", "chain", "attack.steps=[permute,distill,finetune]"))
    assert x.attack.knows == ["weights", "outputs"]
    assert x.attack.data == "attacker" == x.cfg.attack.data
    assert threat.stolen(x, model, key).task.role == "attacker"


def test_the_hash_covers_the_steps_and_their_options_and_nothing_else(results):
    def hashes(*words: str):
        return run.prepare(tiny(results, "uchida", "chain", *words)).hashes

    base = hashes()
    others = [hashes("attack.options.finetune.lr=0.001"), hashes("attack.options.permute.scales=[1]")]
    others += [hashes("attack.steps=[finetune,permute]"), hashes('+attack.at.permute="scale 1"')]
    assert len({cell for _, cell in [base, *others]}) == 5
    assert hashes("attack.options.prune.ratios=[0.5]") == base
    assert hashes("seed=1")[1] == base[1]
    assert hashes("seed=1")[0] != base[0]


def test_a_later_version_of_a_step_is_another_chain(monkeypatch, results):
    from attacks.finetune import Finetune

    before = run.prepare(tiny(results, "uchida", "chain")).hashes
    monkeypatch.setattr(Finetune, "version", Finetune.version + 1)
    assert run.prepare(tiny(results, "uchida", "chain")).hashes[1] != before[1]


def test_a_step_that_skips_ends_the_chain_with_its_reason(marked):
    x, model, key = marked("uchida")
    robbed = victim(x, model, key)
    first = chain("+attack@attack.options.pictures=postprocess", "attack.steps=[pictures,finetune]")
    assert first.skip(robbed) == "pictures: the mark is read from weights, which no change of outputs touches"
    later = chain("+attack@attack.options.pictures=postprocess", "attack.steps=[permute,pictures,finetune]")
    assert later.skip(robbed) is None
    ((knob, _, _, end),) = points(later, robbed, fit(x))
    assert knob == "permute scale 4 > pictures"
    assert end.skipped == "pictures: the mark is read from weights, which no change of outputs touches"


def test_points_that_could_not_be_made_are_not_gone_on_from(marked, monkeypatch):
    from attacks.permute import Permute

    x, model, key = marked("uchida")

    def two(self, victim, rng, fit):
        yield Snapshot("scale", 1, copy.deepcopy(victim.model))
        yield Snapshot("scale", 4, torch.nn.Identity(), skipped="no")

    monkeypatch.setattr(Permute, "run", two)
    assert points(chain(), victim(x, model, key), fit(x))[0][0] == "permute scale 1 > epoch"
    ((knob, _, _, end),) = points(chain('+attack.at.permute="scale 4"'), victim(x, model, key), fit(x))
    assert (knob, end.skipped) == ("permute", "permute: no")


def test_seconds_are_those_of_all_that_a_point_was_made_from(marked, monkeypatch):
    from attacks import chain as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    class Slow(Attack):
        def __init__(self, costs):
            object.__setattr__(self, "costs", costs)

        def skip(self, victim):
            return None

        def run(self, victim, rng, fit):
            for i, (cost, continues) in enumerate(self.costs):
                clock[0] += cost
                yield Snapshot("x", i, victim.model, continues=continues)

    x, model, key = marked("uchida")
    attack = chain()
    steps = {
        "permute": Slow([(100, False), (1, False), (2, True)]),
        "finetune": Slow([(10, False), (20, True), (5, False)]),
    }
    attack.__dict__["attacks"] = steps
    seconds = []
    for s in attack.run(victim(x, model, key), rng(), fit(x)):
        clock[0] += 1000  # what the judge does in between
        seconds.append(s.seconds)
    # The first of permute's points is not what the others were made from: 1 + 2, then 10, 10 + 20, and 5 alone.
    assert seconds == [13, 33, 8]


def test_rows_have_those_seconds(results):
    rows = run.run(tiny(results, "uchida", "chain", "attack.steps=[finetune,prune]", "force=true")).rows[2:]
    assert [row.knob for row in rows] == ["finetune epoch 1 > ratio"] * 2
    assert rows[0].seconds > 0
    alone = run.run(tiny(results, "uchida", "prune", "force=true")).rows[2:]
    assert rows[1].seconds > alone[1].seconds


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack.steps=[permut]"], "attack.steps=permut: not in attack.options; did you mean 'permute'"),
        (["attack.steps=[]"], "attack.steps is empty"),
        (["attack.knows=[key]"], "attack.knows=key: no step knows it"),
        (["attack.steps=[permute,prune]", "attack.data=attacker"], "attack.data=attacker: no step has data"),
        (["+attack.at.finetune=x"], "attack.at=finetune: not known"),
        (["+attack@attack.options.over=overwrite", "attack.steps=[over]"], "attack.steps=over: its goal is overwrite"),
        (["attack.options.finetune.epochs=0"], "epochs=0: must be at least 1"),
        (["data@attack.options.finetune.transfer=cifar100"], "finetune.transfer: a chain stays"),
        (["attack.options.finetune.data=none"], "attack.data=attacker"),
    ],
)
def test_what_cannot_be_is_one_line(words, said):
    with pytest.raises(ConfigError) as caught:
        build_attack("chain", *words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
