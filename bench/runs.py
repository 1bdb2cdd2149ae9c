"""The runs that are kept: list them, look at one, remove some.

  python -m bench.runs list [key=value ...]         every run, or some: method=uchida, method.n_bits=64
  python -m bench.runs show RUN                     its file, command, configuration, rows
  python -m bench.runs rm RUN|key=value ... --yes   removes run files; without --yes says which

RUN is a run's id or how it begins. --runs DIR, repeated: where they lie
(default: results/runs).
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.cli import usage
from bench.errors import ConfigError, UserError, near
from bench.progress import console
from bench.report.tables import Table, show
from bench.store.runfile import GATHERED
from bench.store.runs import located, selected

Run = tuple[str, dict[str, Any]]  # its path, that of its file or what that was before it was compacted; what is in it
DEFAULT = os.path.join("results", "runs")


def flags(
    words: list[str], takes: tuple[str, ...], plain: tuple[str, ...] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """Options (`takes` have a value each) and what is left of a command line. Raises ConfigError for another option."""
    found: dict[str, list[str]] = defaultdict(list)
    rest, each = [], iter(words)
    for word in each:
        name, equals, value = word.partition("=")
        if name in takes:
            if not equals and (value := next(each, "")) == "":
                raise ConfigError(f"{name} needs a value")
            found[name].append(value)
        elif word in plain:
            found[word].append("")
        elif word.startswith("-"):
            raise ConfigError(f"{word}: no such option; {near(word, [*takes, *plain])}")
        else:
            rest.append(word)
    return found, rest


def every(folders: list[str]) -> list[Run]:
    """All runs of folders. Raises UserError where a folder has none."""
    return [item for folder in folders or [DEFAULT] for item in located(Path(folder), [])]


def chosen(runs: list[Run], words: list[str]) -> list[Run]:
    """Runs that pass every `key=value` and, where ids are named, those. Raises UserError for what finds nothing, and
    for the beginning of several ids."""
    filters, ids = [word for word in words if "=" in word], [word for word in words if "=" not in word]
    kept = {id(run) for run in selected([run for _, run in runs], filters)}
    runs = [item for item in runs if id(item[1]) in kept]
    if not ids:
        return runs
    found: list[Run] = []
    for name in ids:
        mine = [item for item in runs if identity(item[1]).startswith(Path(name).stem)]
        if not mine:
            raise UserError(f"no run {name}; {near(name, {identity(run) for _, run in runs}, 5)}")
        if len({identity(run) for _, run in mine}) > 1:
            raise UserError(
                f"{name} begins {len(mine)} runs: {', '.join(sorted(identity(run) for _, run in mine)[:4])}"
            )
        found += mine
    return found


def identity(run: dict[str, Any]) -> str:
    return run["rows"][0]["run_id"]


def listing(runs: list[Run]) -> Table:
    """A line for each run."""
    names = ("run", "method", "attack", "model", "data", "seed", "rows", "made")
    table = Table(f"{len(runs):,} runs", "", [("", name) for name in names], 1)
    for _, run in sorted(runs, key=lambda item: item[1]["rows"][-1]["created_at"] or ""):
        first, status = run["rows"][0], {row["status"] for row in run["rows"]}
        rows = f"{len(run['rows'])}{', failed' * ('failed' in status)}"
        words = [first[name] for name in names[1:6]]
        table.add(identity(run), *map(str, words), rows, str(first["created_at"] or "–")[:10])
    return table


def shown(item: Run) -> None:
    """One run, whole."""
    from omegaconf import OmegaConf

    path, run = item
    out = console()
    where = path if os.path.isfile(path) else f"{path} (compacted)"
    command = "not recorded" if run.get("command") is None else f"python -m bench {' '.join(run['command'])}"
    env = ", ".join(f"{key} {value}" for key, value in run["env"].items())
    facts = {
        "file": where,
        "command": command,
        "made with": env,
        "stages": ", ".join(run.get("stages") or ["not recorded"]),
    }
    for name, text in facts.items():
        out.print(f"{name}: {text}", soft_wrap=True)
    out.print(OmegaConf.to_yaml(run["config"]).rstrip(), soft_wrap=True)
    names = ("knob", "strength", "ber", "log10_p", "utility", "status")
    table = Table("Rows", "", [("", name) for name in names], 1)
    for row in run["rows"]:
        texts = (
            "–" if row[name] is None else f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name])
            for name in names
        )
        table.add(*texts)
    show(table, out)


def remove(runs: list[Run], folders: list[str]) -> None:
    """Delete run files, the figures that go with them, and compacted runs."""
    from bench.store.compact import removed

    compacted: dict[Path, set[str]] = defaultdict(set)
    for path, run in runs:
        file = Path(path)
        for folder in (up for up in file.parents if (up / GATHERED).is_file()):
            compacted[folder].add(file.relative_to(folder).as_posix())
        file.unlink(missing_ok=True)
        first = run["rows"][0]
        for root in folders or [DEFAULT]:
            for figure in (Path(root).parent / "figures").glob(
                f"{first['method']}_{first['attack']}_{identity(run)}.*"
            ):
                figure.unlink(missing_ok=True)
    for folder, names in compacted.items():
        removed(folder, names)


def main(words: list[str]) -> None:
    """list, show or rm. Raises UserError for what the user can mend."""
    if not words:
        raise ConfigError("say what: list, show RUN or rm RUN (--help says more)")
    what, *words = words
    if what not in ("list", "show", "rm"):
        raise ConfigError(f"{what}: no such command; {near(what, ('list', 'show', 'rm'))}")
    found, words = flags(words, ("--runs",), ("--yes",) if what == "rm" else ())
    if what != "list" and not words:
        raise ConfigError(f"{what}: which run? python -m bench.runs list shows their ids")
    runs = chosen(every(found["--runs"]), words)
    if what == "list":
        show(listing(runs), console())
    elif what == "show":
        for item in runs:
            shown(item)
    else:
        if "--yes" not in found:
            show(listing(runs), console())
            raise UserError(f"{len(runs):,} runs would be removed: add --yes", 2)
        remove(runs, found["--runs"])
        print(f"removed: {len(runs):,} runs; what they used of the cache is there still: python -m bench.cache prune")


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: __doc__, main))
