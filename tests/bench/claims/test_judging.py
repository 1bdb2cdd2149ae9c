"""Claims: runs that no criterion is asked about."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from bench import run
from bench.claims.claim import read
from bench.claims.findings import HELD, OPEN, Run
from bench.claims.judging import judge
from tests.fake_claims import ALPHA, seeds


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
    x = SimpleNamespace(verify=SimpleNamespace(alpha=ALPHA), method=SimpleNamespace(boundary=None), path=None)
    alarm = [replace(runs[0].rows[0], detected=True), *runs[0].rows[1:]]
    keys = {"random_keys": 1000, "false_positives": 9}
    for rows, found, said in ((alarm, None, "the unmarked host"), (runs[0].rows, keys, "9 of 1,000 random keys")):
        outcome = run.concluded(x, "cached", run.Made(rows, found, None))  # as the pipeline reports it
        verdict, text = judged([(runs[0].config, outcome), *outcomes(runs[1:])])
        assert verdict == OPEN
        assert text.startswith(f"1 of 3 runs failed: control failed: {said} ")
