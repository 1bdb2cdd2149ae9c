"""The contract of methods and attacks on restored pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import judge, metrics, run, stages
from bench.tasks.restoration import RestorationTask
from tests.helpers import (
    ATTACKS,
    COMPLETE,
    FIRST,
    SMALL,
    WHITE_BOX,
    command,
    config,
    facts,
    marks_of,
    restoration,
)

# Each attack once, the methods in turn; the slow test has all pairs.
PAIRS = [(FIRST[i % len(FIRST)], attack) for i, attack in enumerate(ATTACKS)]


def small(results: Path, picture_folder: Path, method: str, attack: str, *more: str):
    names = [f"method={method}", f"attack={attack}"]
    cfg = config(*names)
    strengths = SMALL | {"n_bits": "32", "k": "64"}  # as few bits as can be detected: few steps embed them
    less = [f"{g}.{k}={v}" for g in ("method", "attack") for k, v in strengths.items() if cfg[g].get(k) is not None]
    if attack == "chain":  # its steps are attacks
        less = [word for word in less if not word.startswith("attack.")]
        less += [f"attack.options.finetune.epochs={SMALL['epochs']}"]
    student = ["attack.student.width=8", "attack.student.depth=3"] if attack == "distill" else []
    return config(*names, *restoration(picture_folder), *less, *student, f"results_dir={results}", *more)


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=marks_of(m, also=FIRST)) for m in WHITE_BOX if m != "none"],
)
def test_marks_are_embedded_and_hosts_are_not_detected(results, picture_folder, method):
    x = run.prepare(small(results, picture_folder, method, "none"))
    entry, host = stages.mark(x), stages.host(x)
    assert entry["ber"] == 0
    _, key = stages.opened(x, entry)
    log10_p = judge.judged(x, stages.load_weights(stages.skeleton(x), host.path), key)[1]
    assert log10_p > -6
    untrained = x.task.utility(stages.fresh(x))
    assert min(host["utility"], entry["utility"]) > untrained + 2  # dB: both learned to restore


@pytest.mark.parametrize(
    ("method", "attack"), [pytest.param(*pair, marks=() if pair[0] == "uchida" else COMPLETE) for pair in PAIRS]
)
def test_attacks_run_or_say_why_not_and_repeat_bit_for_bit(results, picture_folder, method, attack):
    cfg = small(results, picture_folder, method, attack, "verify.keys=50")
    first = run.run(cfg)
    check(first)
    forced = run.run(OmegaConf.merge(cfg, {"force": True}))
    assert facts(forced.rows) == facts(first.rows)


def check(outcome: run.Outcome) -> None:
    assert outcome.status in ("done", "skipped", "cached"), outcome.message
    for row in outcome.rows:
        assert row.status == "ok" or (row.status == "skipped" and row.error)
        assert row.utility is None or 0 <= row.utility <= 100
        assert row.utility_name in ("psnr", None)
        assert row.ber is None or (0 <= row.ber <= 1 and row.log10_p <= 0)
    knobs = [row.knob for row in outcome.rows]
    assert knobs[:2] == ["host", "none"] or (outcome.rows[0].method == "none" and knobs[0] == "none")
    assert metrics.verdict({**vars(outcome.rows[0])}, "removal", 1.0) in ("control", "unmarked")


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", WHITE_BOX)
def test_every_pair_runs_or_says_why_not(results, picture_folder, method, attack):
    check(run.run(small(results, picture_folder, method, attack, "verify.keys=50")))


def test_owners_never_draw_from_the_attackers_pictures_or_the_test_set(monkeypatch, tmp_path, picture_folder):
    drawn = []
    draw = RestorationTask.tensors

    def record(self, split):
        drawn.append((self.role, split))
        return draw(self, split)

    monkeypatch.setattr(RestorationTask, "tensors", record)
    run.run(small(tmp_path, picture_folder, "watermas", "finetune", "train.epochs=1", "verify.keys=0"))
    assert {s for role, s in drawn if role == "owner"} == {"owner"}
    assert {s for role, s in drawn if role == "attacker"} == {"attacker"}
    assert {role for role, s in drawn if s == "test"} == {"judge"}


def test_what_decides_a_host_is_in_its_identity(picture_folder, results):
    def identity(*more: str) -> dict:
        return run.prepare(small(results, picture_folder, "none", "none", *more)).host_identity

    same = identity()
    for change in ("task.sigma=10", "task.patch=32", "task.loss=l1", "task.degradation=rain", "task.metric=ssim"):
        assert identity(change) != same, change
    assert identity("data.flip=false") != same
    for other in ("task.tilt=5", "task.quality=50", "task.eval_batch=7", "data.crop=1", "data.image_size=16"):
        assert identity(other) == same, other  # rain and JPEG have no part in noise, nor have those in patches


@pytest.mark.slow
@pytest.mark.quick
def test_the_command_gives_a_table_in_decibels(tmp_path, picture_folder):
    line = [*restoration(picture_folder), "train.epochs=2", "method=uchida", "method.n_bits=64", "attack=prune"]
    done = command(*line, "attack.ratios=[0.5]", "verify.keys=0", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("uchida on unet, small, seed 0")
    assert "psnr" in done.stdout.splitlines()[1]
    assert list((tmp_path / "runs" / "uchida" / "prune").glob("*.json"))
