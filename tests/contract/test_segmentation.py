"""The contract of methods and attacks on masks."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import judge, metrics, run, stages
from bench.tasks.segmentation import Prior, SegmentationTask
from tests.helpers import ATTACKS, FIRST, SMALL, WHITE_BOX, command, config, facts, marks_of, segmentation

# Each attack once, the methods in turn; the slow test has all pairs.
PAIRS = [(FIRST[i % len(FIRST)], attack) for i, attack in enumerate(ATTACKS)]


def small(results: Path, method: str, attack: str, *more: str):
    names = [f"method={method}", f"attack={attack}"]
    cfg = config(*names)
    strengths = SMALL | {"n_bits": "32", "k": "64"}  # as few bits as can be detected: few steps embed them
    less = [f"{g}.{k}={v}" for g in ("method", "attack") for k, v in strengths.items() if cfg[g].get(k) is not None]
    if attack == "chain":  # its steps are attacks
        less = [word for word in less if not word.startswith("attack.")]
        less += [f"attack.options.finetune.epochs={SMALL['epochs']}"]
    student = ["attack.student.kwargs.depth=2"] if attack in ("distill", "extract") else []
    return config(*names, *segmentation(), *less, *student, f"results_dir={results}", *more)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=marks_of(m, also=["neuralmark"])) for m in WHITE_BOX if m != "none"]
)
def test_marks_are_embedded_and_hosts_are_not_detected(results, method):
    x = run.prepare(small(results, method, "none"))
    entry, host = stages.mark(x), stages.host(x)
    assert entry["ber"] == 0
    _, key = stages.opened(x, entry)
    log10_p = judge.judged(x, stages.load_weights(stages.skeleton(x), host.path), key)[1]
    assert log10_p > -6
    untrained = x.task.utility(stages.fresh(x))
    assert min(host["utility"], entry["utility"]) > untrained + 3  # percent: both learned something


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
        assert row.utility is None or 0 <= row.utility <= 100
        assert row.utility_name in ("miou", None)
        assert row.ber is None or (0 <= row.ber <= 1 and row.log10_p <= 0)
    knobs = [row.knob for row in outcome.rows]
    assert knobs[:2] == ["host", "none"] or (outcome.rows[0].method == "none" and knobs[0] == "none")
    assert metrics.verdict({**vars(outcome.rows[0])}, "removal", 1.0) in ("control", "unmarked", metrics.NO_HOST)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", WHITE_BOX)
def test_every_pair_runs_or_says_why_not(results, method, attack):
    check(run.run(small(results, method, attack, "verify.keys=50")))


def test_a_mark_in_pictures_is_none_in_masks(results):
    outcome = run.job(config("method=boxfree", *segmentation(f"results_dir={results}")))
    assert (outcome.status, outcome.code) == ("failed", 2)
    assert "method=boxfree marks pictures" in outcome.message
    assert "\n" not in outcome.message


def test_owners_never_draw_from_the_attackers_pictures_or_the_test_set(monkeypatch, tmp_path):
    drawn = []
    draw = SegmentationTask.tensors

    def record(self, split):
        drawn.append((self.role, split))
        return draw(self, split)

    monkeypatch.setattr(SegmentationTask, "tensors", record)
    run.run(small(tmp_path, "watermas", "finetune", "train.epochs=1", "verify.keys=0"))
    assert {s for role, s in drawn if role == "owner"} == {"owner"}
    assert {s for role, s in drawn if role == "attacker"} == {"attacker"}
    assert {role for role, s in drawn if s == "test"} == {"judge"}


def test_what_decides_a_host_is_in_its_identity(results):
    def identity(*more: str) -> dict:
        return run.prepare(small(results, "none", "none", *more)).host_identity

    same = identity()
    for change in ("task.class_weights=none", "task.metric=pixels", "data.block=17", "data.seed=1", "data.flip=true"):
        assert identity(change) != same, change
    for other in ("task.eval_batch=7", "data.label=other"):
        assert identity(other) == same, other


def test_a_run_leaves_a_figure(results):
    outcome = run.run(small(results, "uchida", "prune", "verify.keys=0"))
    assert outcome.figure is not None
    assert outcome.figure.read_bytes()[:4] == b"\x89PNG"
    assert outcome.outputs is None  # numbers of a mark in pictures, which this is not


@pytest.mark.slow
def test_a_host_on_the_offline_data_knows_more_than_positions(tmp_path):
    x = run.prepare(config("task=segmentation", "method=none", "attack=none", "device=cpu", f"results_dir={tmp_path}"))
    assert stages.host(x)["utility"] > x.task.utility(Prior(x.task)) + 15


@pytest.mark.slow
@pytest.mark.quick
def test_the_command_gives_a_table_in_percent_and_names_the_figure(tmp_path):
    line = [*segmentation(), "train.epochs=2", "method=uchida", "method.n_bits=32", "attack=prune"]
    done = command(*line, "attack.ratios=[0.5]", "verify.keys=0", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uchida on deeplabv3, scenes, seed 0")
    assert "miou" in done.stdout.splitlines()[1]
    figures = list((tmp_path / "figures").glob("uchida_prune_*.png"))
    assert len(figures) == 1
    assert figures[0].name in done.stdout.replace("\n", "")
