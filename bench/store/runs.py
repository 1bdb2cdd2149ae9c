"""Runs of a folder, whether each lies there as a file (bench.store.runfile) or was gathered into a parquet
(bench.store.parquet), which callers do not have to know."""

from __future__ import annotations

import contextlib
import gc
import heapq
import json
import marshal
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.errors import UserError, choice, near
from bench.store.runfile import COLUMNS, GATHERED, read_loose, records

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
REPEATED = ("run_id", "method", "attack", "model", "data", "utility_name", "utility_victim", "utility_host", "device")
REPEATED += ("config_hash", "commit")
DEPTH = 3  # folders between a run file and the parquet: <method>/<attack>/<run_id>.json
FILTERS = ("method", "attack", "model", "data", "seed")


def read_run(path: Path) -> dict[str, Any]:
    """The run of a path, from its file or, where it was compacted, from the parquet (bench.store.parquet).

    Raises FileNotFoundError for neither and UserError, naming the file, for one that is not what it should be.
    """
    try:
        return read_loose(path)
    except FileNotFoundError:
        for folder in path.parents[:DEPTH]:
            if (gathered := folder / GATHERED).is_file():
                from bench.store import parquet  # and pyarrow, which most runs can do without

                if run := parquet.find(gathered, path.relative_to(folder).as_posix()):
                    return run
        raise


def listed(folder: str | Path, links: bool = True) -> tuple[list[str], list[str]]:
    """Run files and parquets of runs below a folder, each in a fixed order: run files by path, parquets top down.

    `links`: those of linked folders too, each folder once."""
    loose, places, seen = [], [], {os.path.realpath(folder)}
    for at, folders, names in os.walk(folder, followlinks=links):
        folders.sort()
        if links and (linked := [name for name in folders if os.path.islink(f"{at}{os.sep}{name}")]):
            for name in linked:
                real = os.path.realpath(f"{at}{os.sep}{name}")
                # A link to a folder above it, or to one that was there before, would be read again.
                if real in seen or f"{os.path.realpath(at)}{os.sep}".startswith(f"{real}{os.sep}"):
                    folders.remove(name)
                seen.add(real)
        loose += [f"{at}{os.sep}{name}" for name in names if name.endswith(".json") and not name.startswith(".")]
        places.append(f"{at}{os.sep}{GATHERED}")
    # Looked for afterwards: what was compacted while we walked lies in one that may not have been there before.
    return sorted(loose, key=_parts), [file for file in places if os.path.isfile(file)]


def _parts(path: str) -> list[str]:
    return path.replace(os.sep, "/").split("/")


def once(sources: Iterable[Iterator[tuple]]) -> Iterator[tuple]:
    """Items (file, ...) of sources that are each in the order of paths, merged; of a file in several, the first's."""
    last = ""
    for item in heapq.merge(*sources, key=lambda item: _parts(item[0])):
        if item[0] != last:
            yield item
        last = item[0]


def no_runs(path: str | Path) -> UserError:
    return UserError(f"no run files below {path}; make some: python -m bench method=neuralmark attack=prune")


def _runs(path: Path, odd: list[str] | None) -> Iterator[dict[str, Any]]:
    """Runs below a folder in the order of their paths (`located`)."""
    for _, run in located(path, odd):
        yield run


def located(path: Path, odd: list[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, run) below a folder in the order of their paths, each once: a file counts before a compacted run, which
    has the path that its file had. What is wrong with files that are none goes into `odd`; None: raises UserError."""
    loose, gathered = listed(path)  # before the parquets are opened: see bench.store.compact
    share = _sharing()

    def each() -> Iterator[tuple[str, dict[str, Any]]]:
        for file in loose:
            try:
                yield file, share(read_loose(file))
            except UserError as error:
                if odd is None:
                    raise
                odd.append(str(error))

    sources = [each()]
    sources += [_gathered(file, os.path.dirname(file), "") for file in gathered]
    full = path.resolve()
    for up in full.parents[:2]:  # a folder of one that was compacted
        if (file := up / GATHERED).is_file():
            sources.append(_gathered(file, path, f"{full.relative_to(up).as_posix()}/"))
    found = False
    for item in once(sources):
        found = True
        yield item
    if not found:
        raise UserError(f"{len(odd):,} files below {path}, no run among them; {odd[0]}") if odd else no_runs(path)


def _sharing() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Lets runs have the nodes of their configurations, and their environments, in common: half of their memory."""
    known: dict[bytes, Any] = {}

    def shared(run: dict[str, Any]) -> dict[str, Any]:
        first = run["rows"][0] if run["rows"] else {}
        for row in run["rows"][1:]:
            for name in REPEATED:
                if row[name] == first[name]:
                    row[name] = first[name]
        one = {name: known.setdefault(marshal.dumps(node, 2), node) for name, node in run["config"].items()}
        return run | {"config": one, "env": known.setdefault(marshal.dumps(run["env"], 2), run["env"])}

    return shared


def _gathered(file: str | Path, at: str | Path, below: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from bench.store import parquet

    for name, run in parquet.read(Path(file), below):
        yield os.path.join(at, name.removeprefix(below)), run


def _collected(path: str | Path, collect: Callable[[Iterator[dict[str, Any]]], T], odd: list[str] | None = None) -> T:
    for _ in range(100):
        if odd:
            odd.clear()
        try:
            with _no_collector():
                return collect(_runs(Path(path), odd))
        except FileNotFoundError as error:
            gone = error  # compacted while we read: from the start
            time.sleep(0.1)
    raise UserError(f"{gone.filename} cannot be read: {gone.strerror}")


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    # Millions of objects and no cycles: the collector would look at all of them again and again.
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_runs(path: str | Path, odd: list[str] | None = None) -> list[dict[str, Any]]:
    """Every run below a folder, in a fixed order. Raises UserError when there is none, and for a file that is no run
    file, unless there is a list to be told of it: then the rest counts.

    Configurations share what they have in common: not to be changed in place.
    """
    return _collected(path, list, odd)


def frame(runs: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows of run files as one tidy DataFrame: the protocol's fields, then goal, max_damage and alpha, and how many
    random keys were tried on the run's victim and verified."""
    import pandas as pd

    # By columns, each turned into its type and let go before the next: rows would all be held twice.
    lists: list[list[Any]] = [[] for _ in COLUMNS]
    for run in runs:
        for values, found in zip(lists, zip(*records(run), strict=True), strict=False):
            values.extend(found)
    made = {}
    for name in COLUMNS:
        made[name] = pd.Series(lists.pop(0))
    return pd.DataFrame(made)


def load(path: str | Path) -> pd.DataFrame:
    """All rows of a folder as one tidy DataFrame (see `frame`). Raises UserError when there is none."""
    loose, gathered = listed(path)
    if not loose and gathered == [os.path.join(path, GATHERED)]:
        import pandas as pd

        from bench.store import parquet

        with contextlib.suppress(FileNotFoundError), _no_collector():
            return pd.DataFrame(parquet.columns(Path(gathered[0])))
    return _collected(path, frame)


def option(config: dict[str, Any], key: str) -> str | None:
    """A dotted option of a configuration as text (null, true, 0.5), a node by its label; None where there is none."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    node = node.get("label", "...") if isinstance(node, dict) else node
    return node if isinstance(node, str) else json.dumps(node)


def options(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all options of a configuration."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from options(value, f"{prefix}{key}.")


def _same(text: str | None, wanted: str) -> bool:
    """Whether an option has a value: as text, or as a number."""
    try:
        return text is not None and (text == wanted or float(text) == float(wanted))
    except ValueError:
        return False


def known_option(runs: list[dict], key: str, what: str) -> None:
    """Raises UserError, in the name of `what`, for an option that no run has."""
    if not any(option(run["config"], key) is not None for run in runs):
        names = {name for run in runs for name in options(run["config"])}
        dotted = [name for name in names if "." in name and "_target_" not in name]
        raise UserError(f"{what}: no run has it; {near(key, [*FILTERS, *dotted])}", 2)


def selected(runs: list[dict], filters: Iterable[str]) -> list[dict]:
    """Runs that pass every `key=value,value`; a key is of FILTERS or a dotted option (method.n_bits). Raises UserError
    for an unknown key and for nothing left."""
    runs = [run for run in runs if run["rows"]]
    for item in filters:
        key, _, value = item.partition("=")
        if "." in key:
            known_option(runs, key, item)
            found = [option(run["config"], key) for run in runs]
        else:
            choice("filter", key, FILTERS)
            found = [str(run["rows"][0][key]) for run in runs]
        names = {text for text in found if text is not None}
        wanted = value.split(",")
        runs = [run for run, text in zip(runs, found, strict=True) if any(_same(text, one) for one in wanted)]
        if not runs:
            raise UserError(f"{item} leaves nothing; {near(value, names)}")
    if not runs:
        raise UserError("the run files hold no rows")
    return runs
