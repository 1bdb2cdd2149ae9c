"""`python -m bench.plan experiment=reference`: what a sweep would train, before it starts

The words are those of `python -m bench`. Says how many hosts, marks and attacks are there already, how many are to be
made, and how long that takes: seconds of earlier ones, in this cache and these results, of the same kind (another seed,
or for an attack another method). What nothing is known of is said, not guessed. jobs=N: so many at the same time.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.cli import usage
from bench.cli.compose import composed, placed
from bench.errors import UserError
from bench.progress import console

if TYPE_CHECKING:
    from bench.experiment import Experiment

BOOKKEEPING = ("host", "none")  # rows of an attack's run that cost it nothing


@dataclass
class Work:
    """What of one kind is to be made: by identity its group, of which the seconds are alike."""

    done: set[str] = field(default_factory=set)
    todo: dict[str, str] = field(default_factory=dict)
    known: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, str] = field(default_factory=dict)

    def add(self, identity: str, group: str, name: str, there: bool) -> None:
        self.names.setdefault(group, name)
        if there:
            self.done.add(identity)
        else:
            self.todo[identity] = group

    @property
    def seconds(self) -> float:
        """Of all that is to be made and of whose kind something is known."""
        return sum(median(self.known[group]) for group in self.todo.values() if self.known.get(group))

    @property
    def unknown(self) -> list[str]:
        """What nothing is known of, by name."""
        return sorted({self.names[group] for group in self.todo.values() if not self.known.get(group)})


def jobs(words: list[str]) -> list[list[str]]:
    """The command lines of a sweep's jobs, as Hydra's own sweeper makes them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    folders, words = placed(words)
    flags = [word for folder in folders for word in ("--config-dir", str(folder))]
    parsed = OverridesParser.create().parse_overrides(words)
    plain = [o.input_line for o in parsed if not o.is_sweep_override()]
    params = composed(plain, folders, return_hydra_config=True).hydra.sweeper.params or {}
    given = {o.get_key_element() for o in parsed}
    swept = [f"{key}={value}" for key, value in params.items() if key not in given]
    choices = [usage.each_word(o, folders) for o in OverridesParser.create().parse_overrides([*swept, *words])]
    return [[*flags, *one] for one in itertools.product(*choices)]


def experiments(words: list[str]) -> Iterator[Experiment]:
    """The jobs' experiments; those that differ in the attack alone open their data once."""
    from dataclasses import replace

    from omegaconf import OmegaConf

    from bench import spec
    from bench.experiment import prepare

    same: dict[str, list[Any]] = defaultdict(list)
    for one in jobs(words):
        cfg = composed(one)
        nodes = {name: node for name, node in OmegaConf.to_container(cfg, resolve=True).items() if name != "attack"}
        moves = cfg.attack.get("transfer") is not None
        same[json.dumps([nodes, OmegaConf.to_container(cfg.attack) if moves else None], sort_keys=True)].append(cfg)
    for cfgs in same.values():
        first = prepare(cfgs[0])
        yield first
        yield from (replace(first, cfg=cfg, attack=spec.build(cfg.attack, "attack")) for cfg in cfgs[1:])


def planned(words: list[str]) -> dict[str, Work]:
    """hosts, marks and attacks of a sweep."""
    from omegaconf import OmegaConf

    from bench.run import finished
    from bench.store import cache

    work = {name: Work() for name in ("host", "mark", "attack")}
    root, results = None, None
    for x in experiments(words):
        root, results = Path(x.cache.root).expanduser(), x.results
        stages = [("host", x.host_identity, f"{x.model.title} on {x.data.name}")]
        if x.method.marks and x.method.trains_on:
            stages.append(("host", x.baseline_identity, f"{x.model.title} on {x.data.name}, trained on"))
        if x.method.marks:
            stages.append(("mark", x.mark_identity, f"{x.method_name} in {x.model.title} on {x.data.name}"))
        for stage, identity, name in stages:
            whole, address = cache.addressed(stage, identity)
            there = (root / stage / address / "meta.json").is_file()
            work[stage].add(address, _group(whole), name, there)
        node = OmegaConf.to_container(x.cfg.attack, resolve=True)
        attack = _attack(x.attack_name, x.model.title, x.data.name, node)
        name = f"{x.attack_name} on {x.model.title}, {x.data.name}"
        work["attack"].add(x.run_id, attack, name, finished(x) is not None)
    if root is not None:
        _learn(work, root, results)
    return work


def _group(identity: dict[str, Any]) -> str:
    """What stages of which the seconds are alike have in common."""
    return json.dumps({name: value for name, value in identity.items() if name != "seed"}, sort_keys=True)


def _attack(name: str, model: str, data: str, node: dict[str, Any]) -> str:
    options = {key: value for key, value in node.items() if key not in ("seed", "knows", "data")}
    return json.dumps([name, model, data, options], sort_keys=True)


def _learn(work: dict[str, Work], root: Path, results: Path) -> None:
    """Seconds of what was made before: stages from the cache, attacks from run files."""
    from bench.store.runs import read_runs

    for stage in ("host", "mark"):
        for path in sorted((root / stage).glob("*/meta.json")):
            try:
                meta = json.loads(path.read_text(encoding="utf-8"))
                work[stage].known[_group(meta["identity"])].append(float(meta["measured"]["seconds"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a run that needs it says what is wrong
    try:
        runs = read_runs(results / "runs", [])
    except UserError:
        return
    for run in runs:
        rows = [r for r in run["rows"] if r["knob"] not in BOOKKEEPING and r["status"] == "ok"]
        row, node = run["rows"][0], run["config"]["attack"]
        work["attack"].known[_attack(row["attack"], row["model"], row["data"], node)].append(_took(rows))


def _took(rows: list[dict[str, Any]]) -> float:
    """What an attack took. Of epochs each row has the seconds up to there: of such a knob the last counts."""
    total: dict[str, float] = defaultdict(float)
    for row in rows:
        before, seconds = total[row["knob"]], row["seconds"] or 0.0
        total[row["knob"]] = max(before, seconds) if "epoch" in row["knob"] else before + seconds
    return sum(total.values())


def spoken(seconds: float) -> str:
    """A duration in words: 95 s, 20 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show(argv: list[str]) -> None:
    """Print the plan."""
    beside = [word for word in argv if word.startswith("jobs=")]
    words = [word for word in argv if word not in beside and word not in ("-m", "--multirun")]
    try:
        at_once = int(beside[-1].partition("=")[2]) if beside else 1
    except ValueError:
        at_once = 0
    if at_once < 1:
        raise UserError(f"{beside[-1]}: a whole number of jobs at the same time, 1 or more", 2)
    usage.check(["-m", *words])
    from rich.table import Table

    work, out = planned(words), console()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("", "there", "to make", "takes", "of which unknown"):
        table.add_column(name, justify="left" if not name else "right")
    for name, one in work.items():
        unknown = sum(not one.known.get(group) for group in one.todo.values())
        table.add_row(f"{name}s", f"{len(one.done):,}", f"{len(one.todo):,}", spoken(one.seconds), f"{unknown:,}")
    total = sum(one.seconds for one in work.values())
    out.print(table)
    said = f"about {spoken(total)} one after another" + (
        f", {spoken(total / at_once)} {at_once} at a time" * (at_once > 1)
    )
    out.print(f"{said}; without measuring, alignment and controls")
    for name, one in work.items():
        if one.unknown:
            more = f" and {len(one.unknown) - 6} more" if len(one.unknown) > 6 else ""
            out.print(f"no {name} like it was made yet: {'; '.join(one.unknown[:6])}{more}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: __doc__, show))
