"""From a claim to its verdict: its runs made or found done, and what its criterion says of them."""

from __future__ import annotations

import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from bench import run
from bench.claims.claim import Claim
from bench.claims.criteria import decide
from bench.claims.findings import OPEN, Finding, Run
from bench.cli import terminal
from bench.cli.compose import composed
from bench.errors import UserError
from bench.progress import Say
from bench.report.published import what
from bench.run import Outcome
from bench.store import claims as verdicts
from bench.store import expected

SEEDS = 3  # fewer replicates are no evidence


def made(claim: Claim) -> Iterator[tuple[DictConfig, Outcome]]:
    """Run the jobs of a claim, or find them done, one by one."""
    for number, words in enumerate(claim.jobs, 1):
        cfg = composed(words)
        place = f"[{claim.name} {number} of {len(claim.jobs)}] "
        with terminal.live(place) as (say, progress):
            heard = [f"\n{place}{' '.join(words[1:])}"]

            def tell(line: str, heard: list[str] = heard, say: Say = say) -> None:
                while heard:  # a job that is found done says nothing
                    say(heard.pop())
                say(line)

            outcome = run.job(cfg, tell, progress, words)
            if outcome.status == "failed":
                tell(f"error: {outcome.message}")
        yield cfg, outcome


def judge(claim: Claim, done: list[tuple[DictConfig, Outcome]]) -> Finding:
    """The verdict: inconclusive where the runs allow none, else the criterion's. Raises what the criterion raises."""
    runs = [Run(cfg, outcome.rows) for cfg, outcome in done if outcome.rows]
    if reason := unfit(claim, [outcome for _, outcome in done], runs):
        return Finding(OPEN, reason)
    return decide(claim.criterion, runs, claim.parameters)


def settled(claim: Claim) -> tuple[list[tuple[DictConfig, Outcome]], Finding, bool]:
    """A claim's jobs as far as they went, its verdict, and whether all went well; an error leaves it inconclusive."""
    done: list[tuple[DictConfig, Outcome]] = []
    try:
        for job in made(claim):
            done.append(job)
        finding = judge(claim, done)
    except Exception as error:  # of one claim: the others are judged all the same
        if str(claim.config.debug).lower() == "true":
            traceback.print_exc(file=sys.stderr)
        line = str(error)
        if not isinstance(error, UserError):
            line = f"{type(error).__name__}: {' '.join(line.split())} (debug=true shows where)"
        terminal.say(f"error: {claim.name}: {line}")
        return done, Finding(OPEN, f"not judged: {line}"), False
    return done, finding, all(outcome.status != "failed" for _, outcome in done)


def unfit(claim: Claim, outcomes: list[Outcome], runs: list[Run]) -> str:
    """Why no verdict may be spoken on these runs, or an empty string."""
    for status in ("failed", "skipped"):
        if found := [o.message for o in outcomes if o.status == status]:
            return f"{len(found)} of {len(outcomes)} runs {status}: {found[0]}"
    if (seeds := len({run.rows[0].seed for run in runs})) < SEEDS:
        return f"{seeds} of the {SEEDS} seeds that a verdict needs"
    bare = [run for run in runs if not run.victim.detected]
    if bare and claim.criterion != "verified_everywhere":  # which asks just this
        row = bare[0].victim
        read = "no message" if row.ber is None else f"BER {row.ber:.2f}"
        return f"the mark did not take in {len(bare)} of {len(runs)} victims ({row.method} on {row.model}: {read})"
    return ""


def entry(claim: Claim, done: list[tuple[DictConfig, Outcome]], finding: Finding) -> dict[str, Any]:
    """What claims.json holds of a claim, under the names of verdicts.COLUMNS."""
    rows = [outcome.rows[0] for _, outcome in done if outcome.rows]
    asked = claim.config  # where no run says it
    data = dict.fromkeys(row.data for row in rows) or [asked.data.label or asked.data.get("path")]
    model = dict.fromkeys(row.model for row in rows) or [asked.model.label or asked.model.name]
    values = (claim.name, claim.paper, claim.text, claim.rule, finding.verdict, finding.text, ",".join(map(str, data)))
    values += (",".join(map(str, model)), sorted({cfg.seed for cfg, _ in done}))
    values += (list(dict.fromkeys(row.run_id for row in rows)), claim.command, published(done))
    return dict(zip(verdicts.COLUMNS, values, strict=True))


def published(done: list[tuple[DictConfig, Outcome]]) -> str:
    """What the paper reports of a claim's jobs (`expected`), in words: percent by method, of what, in which setting."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for cfg, row in ((cfg, outcome.rows[0]) for cfg, outcome in done if outcome.rows):
        for entry in expected.of(cfg, row.method, row.attack):
            if (entry["knob"] in expected.BEFORE) != (row.attack == "none"):
                continue  # fidelity and what an attack does are asked by different claims
            place = [str(entry["setting"][key]) for key in ("model", "data") if key in entry["setting"]]
            place[-1:] = [" to ".join(filter(None, [*place[-1:], entry["setting"].get("attack.transfer")]))]
            point = what(entry["quantity"], entry["knob"], entry["strength"])
            said = f"({point}: {', '.join(filter(None, [entry['table'], *place]))}; {entry['source']})"
            who = "" if entry["knob"] == "host" else f"{row.method} "
            found[said][f"{who}{entry['published']:g}%"] = ""
    return "; ".join(f"{', '.join(values)} {said}" for said, values in found.items())
