"""NO HOST, NO MARK, TOO FEW TEST IMAGES: in rows, terminal, tables and page alike."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from bench import metrics, run
from bench.cli import terminal
from bench.report.content import assemble
from bench.report.outcomes import why
from bench.report.page.page import _points
from bench.store.runs import read_run
from tests import fake_runs
from tests.fake_runs import cell, plausible, point, summary
from tests.helpers import tiny

FACTS = {
    "NO HOST": {"log10_p_host": -0.4},
    "NO MARK": {"marked": False},
    "TOO FEW TEST IMAGES": {"tested": 6, "utility_half": 39.0},
}


def runs(word: str, **more) -> list[dict]:
    fixed = FACTS[word] | more
    first = {"log10_p_host": -300.0, "tested": 359, "utility_half": 1.6, "marked": True}
    made = fake_runs.run("uchida", "prune", points=[point(ber=0.5)], **(first | fixed))
    if word == "NO MARK":  # the victim itself says so
        made["rows"][1] |= {"ber": 0.5, "log10_p": 0.0, "detected": False}
    return [made, fake_runs.run("neuralmark", "prune", points=[point()], **first)]


@pytest.mark.parametrize("word", FACTS)
def test_the_words_stand_everywhere(word, capsys):
    content = assemble(made := runs(word))
    verdicts = content.rows.set_index(["method", "knob"])["verdict"]
    assert verdicts["uchida", "ratio"] == verdicts["uchida", "none"] == word
    assert verdicts["uchida", "host"] == ("NO HOST" if word == "NO HOST" else "control")
    assert verdicts["neuralmark", "ratio"] == "survived"
    assert cell(made) == word
    assert content.cells["reason"][0] == f"{word}: {why(word)}"
    assert content.unsound == {("uchida", "mlp", "digits"): word}
    assert [row[-1] for row in summary(made).texts] == ["survived (BER 0.00)", f"{word} [1]"]
    shown = _points(content, {})
    assert f">{word}</td>" in shown
    assert f"({word})" not in shown  # once is enough
    terminal.table([run.Row(**row) for row in made[0]["rows"]], "removal", 1e-9, 5.0)
    said = capsys.readouterr().out
    assert f"{word}: " in said  # and what to do
    assert "removed" not in said


def test_rows_of_before_take_it_from_their_victim():
    old = [dict(run) for run in runs("NO MARK", marked=None, tested=None, utility_half=None, log10_p_host=None)]
    assert cell(old) == "NO MARK"
    assert set(assemble(old).rows.query("method == 'uchida' and knob == 'ratio'")["verdict"]) == {"NO MARK"}


def test_claims_are_judged_without_utilities():
    few = {"tested": 6, "utility_half": 39.0}
    found = assemble(plausible(seeds=(0,), methods=("uchida",), attacks=("prune", "forge"), **few))
    assert dict(zip(found.cells["attack"], found.cells["text"], strict=True)) == {
        "prune": "TOO FEW TEST IMAGES",
        "forge": "forged (flip, learn)",
    }


def test_a_control_that_detects_is_said_first():
    made = runs("NO HOST")
    made[0]["rows"][0] |= {"ber": 0.0, "log10_p": -70.0, "detected": True}
    assert cell(made) == "INVALID"


def test_an_untrained_host_is_none_and_six_images_are_few(results):
    words = ("data.test_limit=6", "data.train_limit=40", "train.epochs=1", "train.lr=1e-12", "verify.keys=0")
    outcome = run.run(tiny(results, "uchida", "prune", *words))
    for row in outcome.rows:
        assert (row.tested, row.log10_p_host > -3) == (6, True)
        assert row.utility_half > 5
        found = metrics.verdict(asdict(row), "removal", 5.0)
        assert found == "NO HOST"
    assert [row.marked for row in outcome.rows[:3]] == [None, None, outcome.rows[1].detected]
    (again,) = [read_run(outcome.path)]
    assert again["rows"][2]["log10_p_host"] == outcome.rows[2].log10_p_host


def test_the_defaults_have_images_enough(marked):
    x, model, _ = marked("uchida")
    utility = x.task.utility(model)
    log10_p, half = x.task.confidence(model, model, utility, utility)
    labels, index = x.task.tensors("test")[1:]
    commonest = labels[index].bincount().max().item() / len(index)
    hits = round(utility * len(index) / 100)
    by_hand = sum(
        math.comb(len(index), k) * commonest**k * (1 - commonest) ** (len(index) - k)
        for k in range(hits, len(index) + 1)
    )
    assert log10_p == pytest.approx(math.log10(by_hand), abs=1e-6)
    assert half == pytest.approx(metrics.room(utility, 180))
