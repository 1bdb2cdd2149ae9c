"""The contract of methods and attacks on networks of text."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import judge, metrics, run, stages
from bench.report import readings
from bench.store.runs import read_run
from bench.tasks.language import LanguageTask
from tests.helpers import ATTACKS, FIRST, LANGUAGE, SMALL, WHITE_BOX, command, config, facts, marks_of

# Each attack once, the methods in turn; the slow test has all pairs.
PAIRS = [(FIRST[i % len(FIRST)], attack) for i, attack in enumerate(ATTACKS)]


def small(results: Path, method: str, attack: str, *more: str):
    names = [f"method={method}", f"attack={attack}", *LANGUAGE]
    cfg = config(*names)
    strengths = SMALL | {"n_bits": "32", "k": "64"}  # as few bits as can be detected: few steps embed them
    less = [f"{g}.{k}={v}" for g in ("method", "attack") for k, v in strengths.items() if cfg[g].get(k) is not None]
    if attack == "chain":  # its steps are attacks
        less = [word for word in less if not word.startswith("attack.")]
        less += [f"attack.options.finetune.epochs={SMALL['epochs']}"]
    return config(*names, *less, f"results_dir={results}", *more)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=marks_of(m, also=["neuralmark"])) for m in WHITE_BOX if m != "none"]
)
def test_marks_are_embedded_and_hosts_are_not_detected(results, method):
    x = run.prepare(small(results, method, "none"))
    entry, host = stages.mark(x), stages.host(x)
    assert entry["ber"] == 0
    _, key = stages.opened(x, entry)
    assert judge.judged(x, stages.load_weights(stages.skeleton(x), host.path), key)[1] > -6
    untrained = x.task.utility(stages.fresh(x))
    assert max(host["utility"], entry["utility"]) < untrained - 1  # bits per byte: both learned


@pytest.mark.parametrize(("method", "attack"), [pytest.param(*pair, marks=marks_of(pair[0])) for pair in PAIRS])
def test_attacks_run_or_say_why_not_and_repeat_bit_for_bit(results, method, attack):
    cfg = small(results, method, attack, "verify.keys=50")
    first = run.run(cfg)
    check(first)
    forced = run.run(OmegaConf.merge(cfg, {"force": True}))
    assert facts(forced.rows) == facts(first.rows)


def check(outcome: run.Outcome) -> None:
    assert outcome.status in ("done", "skipped", "cached"), outcome.message
    for row in outcome.rows:
        assert row.status == "ok" or (row.status == "skipped" and row.error)
        assert row.utility is None or row.utility >= 0
        assert row.utility_name in ("bits/byte", None)
        assert row.ber is None or (0 <= row.ber <= 1 and row.log10_p <= 0)
    knobs = [row.knob for row in outcome.rows]
    assert knobs[:2] == ["host", "none"] or (outcome.rows[0].method == "none" and knobs[0] == "none")
    assert metrics.verdict({**vars(outcome.rows[0])}, "removal", 1.0) in ("control", "unmarked")


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", WHITE_BOX)
def test_every_pair_runs_or_says_why_not(results, method, attack):
    check(run.run(small(results, method, attack, "verify.keys=50")))


def test_owners_never_draw_from_the_attackers_text_or_the_test_set(monkeypatch, tmp_path):
    drawn = []
    draw = LanguageTask.tensors

    def record(self, split):
        drawn.append((self.role, split))
        return draw(self, split)

    monkeypatch.setattr(LanguageTask, "tensors", record)
    run.run(small(tmp_path, "watermas", "finetune", "train.epochs=1", "verify.keys=0"))
    assert {s for role, s in drawn if role == "owner"} == {"owner"}
    assert {s for role, s in drawn if role == "attacker"} == {"attacker"}
    assert {role for role, s in drawn if s == "test"} == {"judge"}


def test_what_decides_a_host_is_in_its_identity(results):
    def identity(*more: str) -> dict:
        return run.prepare(small(results, "none", "none", *more)).host_identity

    same = identity()
    for change in ("task.context=16", "data.vocabulary=310", "data.train_limit=15", "data.split_seed=1"):
        assert identity(change) != same, change
    for other in ("task.eval_batch=7", "task.meanings=5", "task.written=9", "model.label=other"):
        assert identity(other) == same, other


def test_a_run_shows_what_host_victim_and_suspect_write(results):
    outcome = run.run(small(results, "uchida", "prune", "attack.ratios=[0.5]", "verify.keys=0"))
    assert outcome.figure is not None
    assert outcome.figure.stat().st_size > 10_000
    kept = read_run(outcome.path)["outputs"]
    assert kept == outcome.outputs
    assert [name for name, _ in readings.spoken(kept)] == ["prompt", "reference", "host", "victim", "ratio 0.5"]
    assert len({len(texts) for _, texts in readings.spoken(kept)}) == 1
    table = readings.writing([read_run(outcome.path)])
    assert [row[4] for row in table.texts] == ["prompt", "reference", "host", "victim", "ratio 0.5"]


@pytest.mark.slow
@pytest.mark.quick
def test_the_command_gives_a_table_in_bits_per_byte_and_says_what_is_written(tmp_path):
    line = [*LANGUAGE, "train.epochs=2", "method=uchida", "method.n_bits=32", "attack=prune"]
    done = command(*line, "attack.ratios=[0.5]", "verify.keys=0", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uchida on gpt, pydoc, seed 0")
    assert "bits/byte" in done.stdout.splitlines()[1]
    assert "victim:" in done.stdout
    page = command("--results", str(tmp_path), "--formats", "png", module="bench.report")
    assert page.returncode == 0, page.stderr
