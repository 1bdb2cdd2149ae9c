"""The command line's words from Python: one experiment, or a sweep's, as a table of rows."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench.cli import usage
from bench.cli.compose import composed
from bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def run(*words: str, seed: int | None = None) -> pd.DataFrame:
    """`python -m bench WORDS`: the rows of that experiment (what is done is not done again), with their verdicts. A
    word of several values, method=uchida,neuralmark, is a sweep. Raises UserError for what cannot be, or failed."""
    import pandas as pd
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from bench import metrics
    from bench.run import job

    given = [*words, *([] if seed is None else [f"seed={seed}"])]
    usage.check(["-m", *given])
    parsed = OverridesParser.create().parse_overrides(given)
    tables = []
    for choice in itertools.product(*map(usage.each_word, parsed)):
        cfg = composed(choice)
        outcome = job(cfg, words=[*choice])
        if outcome.status == "failed":
            raise UserError(outcome.message, outcome.code)
        judge = cfg.attack.goal, cfg.verify.max_damage
        tables.append([{**asdict(row), "verdict": metrics.verdict(asdict(row), *judge)} for row in outcome.rows])
    return pd.DataFrame([row for table in tables for row in table])
