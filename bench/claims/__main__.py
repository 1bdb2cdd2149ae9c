"""`python -m bench.claims [NAME ...] [a.b=c ...]`: headline claims, judged

  python -m bench.claims                            every claim, on digits
  python -m bench.claims uchida_pruning             one of them
  python -m bench.claims data=cifar10 train=long    all, at another scale
  python -m bench experiment=claims/uchida_pruning launcher=joblib
                                                    its runs, several at once

A claim is a file in conf/experiment/claims: a sweep, and the criterion of
bench/claims/criteria.py that judges its rows: held, failed or inconclusive.
Runs whose files are there are not made again. Prints a table; writes
claims.json and tables/claims.csv, .md and .tex in results_dir. Exit status 1
when a run failed or a claim could not be judged; a claim that fails is a
result.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bench.claims.claim import names, read
from bench.cli import usage
from bench.cli.compose import CONF
from bench.cli.help import first_comment
from bench.errors import ConfigError, near
from bench.report.style import JUDGED
from bench.store import claims as verdicts


def help_text() -> str:
    folder = CONF / "experiment" / "claims"
    each = (f"  {name:28} {first_comment(folder / f'{name}.yaml')}" for name in names())
    return "\n".join([__doc__, "claims", *each])


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """(claims asked for or all, overrides). Raises ConfigError for an unknown claim or flag."""
    asked = [word for word in argv if "=" not in word and not word.startswith("~")]
    for word in asked:
        if word.startswith("-"):
            raise ConfigError(f"{word}: no such flag; bench.claims takes names of claims and overrides (a.b=c)")
        if word.removeprefix("claims/") not in names():
            raise ConfigError(f"unknown claim {word!r}; {near(word, names())}")
    overrides = [word for word in argv if word not in asked]
    if any(word.lstrip("+~").startswith(("experiment=", "hydra.")) for word in overrides):
        raise ConfigError("bench.claims chooses the experiment itself: give the names of claims")
    if launcher := next((word for word in overrides if re.match(r"[+~]*launcher\b", word)), ""):
        how = f"python -m bench experiment=claims/NAME {launcher} makes its runs several at once"
        raise ConfigError(f"{launcher}: bench.claims runs one job after another; {how}, then judge them here")
    return [word.removeprefix("claims/") for word in dict.fromkeys(asked)] or names(), overrides


def run(argv: list[str]) -> bool:
    """Run, judge, write, print; False when a run failed. Raises UserError for what the user can mend."""
    chosen, overrides = split(argv)
    claims = [read(name, overrides) for name in chosen]  # a mistake costs a second, not the runs before it
    path = Path(claims[0].config.results_dir) / "claims.json"
    verdicts.read(path)
    from bench.claims import judging, tables  # and torch: seconds that a mistake need not wait for

    new, complete = [], True
    for claim in claims:
        done, finding, well = judging.settled(claim)
        complete &= well
        new.append(judging.entry(claim, done, finding))
        verdicts.remember(path, new[-1])
    with verdicts.locked(path):  # other processes' verdicts too, and never older ones than they wrote
        paths = [path, *tables.write(verdicts.read(path) or [], path.parent / "tables")]
    tables.show(new)
    print(", ".join(f"{verdict} {sum(e['verdict'] == verdict for e in new)}" for verdict in JUDGED))
    print(*paths, sep="\n")
    return complete


def main(argv: list[str]) -> int:
    """The command line; returns the exit code."""
    return usage.answer(argv, help_text, run, kept="finished runs and verdicts are kept")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
