"""Claims: runs that no criterion is asked about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import run
from bench.claims.claim import read
from bench.claims.findings import HELD, OPEN, Run
from bench.claims.judging import judge, published
from bench.cli.compose import composed
from bench.errors import ConfigError
from tests.fake_claims import ALPHA, one, seeds


def outcomes(runs: list[Run], status="done", message="") -> list:
    return [(r.config, run.Outcome(status, r.rows, message=message)) for r in runs]


def judged(done) -> tuple[str, str]:
    claim = read("uchida_pruning", ["results_dir=unused"])
    found = judge(claim, done)
    return found.verdict, found.text


def test_runs_that_allow_no_verdict_give_none():
    good = seeds([("ratio", 0.65, 0, 60.0)])
    assert judged(outcomes(good))[0] == HELD
    failed = [*outcomes(good[:2]), *outcomes(good[2:], "failed", "no space left")]
    assert judged(failed) == (OPEN, "1 of 3 runs failed: no space left")
    lost = [*outcomes(good[:2]), (good[2].config, run.Outcome("failed", [], message="no such layer"))]
    assert judged(lost) == (OPEN, "1 of 3 runs failed: no such layer")
    assert judged(outcomes(good, "skipped", "needs bits")) == (OPEN, "3 of 3 runs skipped: needs bits")
    assert judged(outcomes(good[:2])) == (OPEN, "2 of the 3 seeds that a verdict needs")
    bare = [*good[:2], *seeds([("ratio", 0.65, 0, 60.0)], victim={"wrong": 128})[2:]]
    assert judged(outcomes(bare)) == (OPEN, "the mark did not take in 1 of 3 victims (uchida on resnet18: BER 0.50)")


def test_a_control_that_detects_gives_no_verdict():
    runs = seeds([("ratio", 0.65, 0, 60.0)])
    names = {"method_name": "uchida", "attack_name": "prune", "run_id": "0", "results": Path("nowhere"), "path": None}
    x = SimpleNamespace(verify=SimpleNamespace(alpha=ALPHA), method=SimpleNamespace(boundary=None), **names)
    alarm = [replace(runs[0].rows[0], detected=True), *runs[0].rows[1:]]
    keys = {"random_keys": 1000, "false_positives": 9}
    for rows, found, said in ((alarm, None, "the unmarked host"), (runs[0].rows, keys, "9 of 1,000 random keys")):
        outcome = run.concluded(x, "cached", run.Made(rows, found, None))  # as the pipeline reports it
        verdict, text = judged([(runs[0].config, outcome), *outcomes(runs[1:])])
        assert verdict == OPEN
        assert text.startswith(f"1 of 3 runs failed: control failed: {said} ")


def told(name: str, attack: str, *methods: str) -> str:
    """What a claim's file says is published of these methods, from runs of any points."""
    done = []
    for method in methods:
        rows = one([], method=method, attack=attack).rows
        cfg = composed([f"experiment=claims/{name}", f"method={method}", "results_dir=unused"])
        done.append((cfg, run.Outcome("done", rows)))
    return published(done)


def test_what_the_paper_reports_is_told_by_method_with_its_setting():
    text = told("neuralmark_overwriting", "overwrite", "neuralmark", "uchida", "uchida", "frequency")
    first, second = text.split("; neuralmark ")
    assert first == (
        "neuralmark 100%, uchida 53.9% (owner's bits, lambda factor, lr 0.001 1000: overwriting by lambda, "
        "resnet18_cifar, cifar100 to cifar10; Yao, Song, Jin, arXiv 2507.11137)"
    )
    assert second.startswith("92.2%, uchida 62.1% (owner's bits, lambda factor, lr 0.01 1: ")
    forged = told("neuralmark_forging", "forge", "neuralmark", "uchida")
    assert "neuralmark 48.6% (claim's bits, tries 1: forging, " in forged
    assert "uchida 100% (claim's bits, last learn: forging, " in forged


def test_fidelity_is_told_where_it_is_asked():
    text = told("uchida_accuracy", "none", "uchida")
    assert "91.96% (accuracy, no mark: test error, wrn_10_4, cifar10; " in text
    assert "uchida 92.03% (accuracy, victim: " in text
    assert "accuracy" not in told("uchida_pruning", "prune", "uchida")
    assert told("tang_finetuning", "finetune", "frequency") == ""
    assert published([]) == ""


def test_a_claim_with_a_bad_block_is_refused_before_its_runs():
    with pytest.raises(ConfigError, match=r"expected.entries\[0\]: published=200: must be percent"):
        read("uchida_pruning", ["results_dir=unused", "expected.entries=[{quantity:accuracy,published:200}]"])
