"""`python -m bench.claims [NAME ...] [a.b=c ...]`: headline claims, judged

  python -m bench.claims                            every claim, on digits
  python -m bench.claims uchida_pruning             one of them
  python -m bench.claims data=cifar10 train=long    all, at another scale
  python -m bench experiment=claims/uchida_pruning launcher=joblib
                                                    its runs, several at once

A claim is a file in conf/experiment/claims: a sweep, and the criterion of
bench/criteria.py that judges its rows: held, failed or inconclusive. Runs whose
files are there are not made again. Prints a table; writes claims.json and
tables/claims.csv, .md and .tex in results_dir. Exit status 1 when a run failed
or a claim could not be judged; a claim that fails is a result.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import usage, verdicts
from bench.cli import CONF
from bench.spec import choice, near
from bench.types import ConfigError, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bench.evidence import Finding, Run
    from bench.run import Outcome

SEEDS = 3  # fewer replicates are no evidence
# What may have several values in one claim, beside what it compares: each of these is judged by itself, or is a seed.
SWEPT = ("seed", "attack", "model", "data", "model.name", "data.path")
STYLES = {"held": "green", "failed": "red", "inconclusive": "yellow"}


@dataclass(frozen=True)
class Claim:
    """A file of conf/experiment/claims for one command line: its jobs as words for Hydra, what it says, who judges."""

    name: str
    jobs: list[list[str]]
    paper: str
    text: str
    criterion: str
    parameters: dict[str, Any]
    overrides: list[str]
    results: Path
    data: str
    model: str
    debug: bool

    @property
    def command(self) -> str:
        return shlex.join(["python", "-m", "bench.claims", self.name, *self.overrides])

    @property
    def rule(self) -> str:
        return f"{self.criterion}({', '.join(f'{k}={_plain(v)}' for k, v in self.parameters.items())})"


def names() -> list[str]:
    """Every claim that conf/experiment/claims holds."""
    return sorted(path.stem for path in (CONF / "experiment" / "claims").glob("*.yaml"))


def read(name: str, overrides: list[str]) -> Claim:
    """A claim and its jobs for a command line: an axis given there replaces the file's, as in `python -m bench`.

    Raises ConfigError for an override that does not compose, an unknown criterion and parameters that it does not take,
    and for several values of an option that the claim does not compare.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parser, experiment = OverridesParser.create(), f"experiment=claims/{name}"
    if problem := usage.problem([experiment, *overrides]):
        raise ConfigError(f"{name}: {problem}")
    given = parser.parse_overrides(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first = [usage.each_word(o)[0] for o in given]
        cfg = compose("config", overrides=[experiment, *first], return_hydra_config=True)
    own = parser.parse_overrides([f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()])
    axes = {o.get_key_element(): o for o in [*own, *given]}
    if problem := usage.problem([experiment, *(o.input_line for o in axes.values())]):
        raise ConfigError(f"{name}: {problem}")
    claim = OmegaConf.to_container(cfg.claim, resolve=True)
    parameters = dict(claim["criterion"])
    criterion = parameters.pop("name")
    check(name, criterion, parameters)
    words = {o.input_line: usage.each_word(o) for o in axes.values()}
    compared = parameters.get("axis")
    for key, o in axes.items():
        if len(words[o.input_line]) > 1 and key.lstrip("+") not in (*SWEPT, compared):
            beside = f"{compared} and " if compared else ""
            raise ConfigError(
                f"{name}: {o.input_line}: a verdict is on one value of it; {beside}seeds may have several"
            )
    # Once, also where a value was given twice: seeds are counted.
    jobs = [[experiment, *job] for job in dict.fromkeys(itertools.product(*words.values()))]
    said = (claim["paper"], claim["text"], criterion, parameters)
    place = (str(cfg.data.label or cfg.data.get("path")), str(cfg.model.label or cfg.model.name))
    return Claim(name, jobs, *said, overrides, Path(cfg.results_dir), *place, str(cfg.debug).lower() == "true")


def check(name: str, criterion: str, parameters: dict[str, Any]) -> None:
    """Raises ConfigError unless there is such a criterion and it takes these parameters."""
    from bench.criteria import CRITERIA

    choice(f"{name}: criterion", criterion, CRITERIA)
    try:
        inspect.signature(CRITERIA[criterion]).bind([], **parameters)
    except TypeError as error:
        raise ConfigError(f"{name}: criterion {criterion}: {error}") from error


def made(claim: Claim) -> Iterator[tuple[DictConfig, Outcome]]:
    """Run the jobs of a claim, or find them done, one by one."""
    from hydra import compose, initialize_config_dir

    from bench import terminal
    from bench.run import job

    for number, words in enumerate(claim.jobs, 1):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=words)
        place = f"[{claim.name} {number} of {len(claim.jobs)}] "
        with terminal.live(place) as (say, progress):
            heard = [f"\n{place}{' '.join(words[1:])}"]

            def tell(line: str, heard: list[str] = heard, say: Callable[[str], None] = say) -> None:
                while heard:  # a job that is found done says nothing
                    say(heard.pop())
                say(line)

            outcome = job(cfg, tell, progress)
            if outcome.status == "failed":
                tell(f"error: {outcome.message}")
        yield cfg, outcome


def judge(claim: Claim, done: list[tuple[DictConfig, Outcome]]) -> Finding:
    """The verdict: inconclusive where the runs allow none, else the criterion's. Raises what the criterion raises."""
    from bench.criteria import decide
    from bench.evidence import OPEN, Finding, Run

    runs = [Run(cfg, outcome.rows) for cfg, outcome in done if outcome.rows]
    if reason := unfit(claim, [outcome for _, outcome in done], runs):
        return Finding(OPEN, reason)
    return decide(claim.criterion, runs, claim.parameters)


def settled(claim: Claim) -> tuple[list[tuple[DictConfig, Outcome]], Finding, bool]:
    """A claim's jobs as far as they went, its verdict, and whether all went well; an error leaves it inconclusive."""
    from bench.evidence import OPEN, Finding
    from bench.terminal import say

    done: list[tuple[DictConfig, Outcome]] = []
    try:
        for job in made(claim):
            done.append(job)
        finding = judge(claim, done)
    except Exception as error:  # of one claim: the others are judged all the same
        if claim.debug:
            traceback.print_exc(file=sys.stderr)
        line = str(error)
        if not isinstance(error, UserError):
            line = f"{type(error).__name__}: {' '.join(line.split())} (debug=true shows where)"
        say(f"error: {claim.name}: {line}")
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
    data = dict.fromkeys(row.data for row in rows) or [claim.data]
    model = dict.fromkeys(row.model for row in rows) or [claim.model]
    values = (claim.name, claim.paper, claim.text, claim.rule, finding.verdict, finding.text, ",".join(map(str, data)))
    values += (",".join(map(str, model)), sorted({cfg.seed for cfg, _ in done}))
    values += (list(dict.fromkeys(row.run_id for row in rows)), claim.command)
    return dict(zip(verdicts.COLUMNS, values, strict=True))


def write_tables(entries: list[dict[str, Any]], folder: Path) -> list[Path]:
    """claims.csv with every field; claims.md and claims.tex with the numbers as notes. Returns the paths."""
    import pandas as pd

    from bench import store, tables

    table = tables.Table(
        "Claims", "verdicts by 95% intervals", [("", n) for n in ("claim", "paper", "on", "verdict")], 3
    )
    for item in entries:
        on = ", ".join([*place(item), f"{len(item['seeds'])} seeds"])
        mark = table.note(f"{item['name']}: {item['claim']}: {item['text']}")
        table.rows.append([item["name"], item["paper"], on, item["verdict"] + mark])
    legend = "held and failed where the interval decides"
    plain = [{k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in item.items()} for item in entries]
    texts = {
        "csv": pd.DataFrame(plain, columns=list(verdicts.COLUMNS)).to_csv(index=False),
        "md": tables.markdown([table], legend),
        "tex": tables.latex([table], legend),
    }
    paths = [folder / f"claims.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        store.write_text(path, text)
    return paths


def place(item: dict[str, Any]) -> list[str]:
    """What an entry was judged on: networks, data, and the settings that were given."""
    return [item["model"], item["data"], *verdicts.settings(item)]


def show(entries: Iterable[dict[str, Any]]) -> None:
    """The table on stdout: verdicts, what the claims say, and the numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False, markup=False)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column("verdict", no_wrap=True)
    grid.add_column("claim; numbers with 95% intervals")
    for item in entries:
        said = Text.assemble((item["name"], "bold"), f" ({item['paper']}; {', '.join(place(item))})")
        said.append(f"\n{item['claim']}", "italic")
        grid.add_row(Text(item["verdict"], style=STYLES[item["verdict"]]), said.append(f"\n{item['text']}"))
    console.print(grid)


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
    path = claims[0].results / "claims.json"
    verdicts.read(path)

    new, complete = [], True
    for claim in claims:
        done, finding, well = settled(claim)
        complete &= well
        new.append(entry(claim, done, finding))
        verdicts.remember(path, new[-1])
    with verdicts.locked(path):  # other processes' verdicts too, and never older ones than they wrote
        paths = [path, *write_tables(verdicts.read(path) or [], path.parent / "tables")]
    show(new)
    print(", ".join(f"{verdict} {sum(e['verdict'] == verdict for e in new)}" for verdict in STYLES))
    print(*paths, sep="\n")
    return complete


def _plain(value: Any) -> str:
    return json.dumps(value).replace('"', "")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in argv):
        print(f"{__doc__}\nclaims")
        for name in names():
            print(f"  {name:28} {usage.first_comment(CONF / 'experiment' / 'claims' / f'{name}.yaml')}")
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        return 0 if run(argv) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted: finished runs and verdicts are kept, the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
