"""What the cache holds (decoded data, hosts, marks), which run used what of it, and what may go.

  python -m bench.cache size           how much of what, and how much of it no run names
  python -m bench.cache path RUN       the folders that a run used
  python -m bench.cache prune --yes    removes what no run names and nobody used for a week

Without --yes prune says what it would remove; --days N: not used for so long
(default: 7). --results DIR (default: results); --runs DIR, repeated: all runs
that share the cache (default: RESULTS/runs); --root DIR: the cache (default:
RESULTS/cache). What is being written is never touched.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bench import runs as kept
from bench.cli import usage
from bench.errors import ConfigError, UserError, near
from bench.progress import console
from bench.report.tables import Table, show
from bench.store.files import DAY


@dataclass(frozen=True)
class Held:
    """A folder of the cache: its stage and address; bytes; when it was used last, in seconds since 1970; `left`: what a
    killed process left, or a training that was stopped, and no entry."""

    path: Path
    name: str
    size: int
    last: float
    left: bool = False


def held(root: Path) -> list[Held]:
    """Every folder of a cache. Raises UserError where there is no cache."""
    if not root.is_dir():
        raise UserError(f"no cache at {root}: --root DIR says where it is")
    found = []
    for stage in sorted(path for path in root.iterdir() if path.is_dir()):
        for path in sorted(item for item in stage.iterdir() if item.is_dir()):
            with contextlib.suppress(FileNotFoundError):  # it goes as we look
                files = [file.stat() for file in path.rglob("*") if file.is_file()]
                left = path.name.startswith(".")
                address = path.name.lstrip(".").split(".")[0]
                last = max((file.st_mtime for file in files), default=0.0) if left else path.stat().st_mtime
                found.append(Held(path, f"{stage.name}/{address}", sum(f.st_size for f in files), last, left))
    return found


def stages(folders: Iterable[Path]) -> tuple[set[str], float]:
    """The stages that runs name, and when the last run was made that names none (0: all do)."""
    named: set[str] = set()
    silent = 0.0
    for folder in folders:
        for _, run in kept.located(folder, []):
            if run.get("stages"):
                named |= set(run["stages"])
            else:
                silent = max([silent, *(_seconds(row["created_at"]) for row in run["rows"])])
    return named, silent


def _seconds(text: str | None) -> float:
    try:
        return time.mktime(time.strptime(text or "", "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    except ValueError:
        return time.time()  # it may have been now


def spare(entries: Iterable[Held], named: set[str], silent: float, days: float) -> Iterator[Held]:
    """What may go: what no run names, nobody used for so many days, and no run that does not say could have used."""
    for entry in entries:
        old = time.time() - entry.last > days * DAY
        made = _made(entry.path)
        if old and entry.name not in named and (entry.left or made > silent):
            yield entry


def _made(path: Path) -> float:
    with contextlib.suppress(OSError):
        return (path / "meta.json").stat().st_mtime
    return 0.0


def removed(entry: Held) -> bool:
    """Delete a folder, under the lock of its address; False where another process holds that, or has just used it."""
    try:
        with FileLock(entry.path.parent / f"{entry.name.split('/')[1]}.lock", timeout=0):
            if not entry.left and entry.path.stat().st_mtime > entry.last:
                return False
            aside = entry.path.with_name(f".{entry.path.name.lstrip('.')}.gone.tmp")
            entry.path.rename(aside)  # nobody finds half of it
            shutil.rmtree(aside, ignore_errors=True)
            return True
    except (Timeout, FileNotFoundError):
        return False
    except OSError as error:
        raise UserError(f"cannot remove {entry.path}: {error.strerror or error}") from error


def amount(size: float) -> str:
    """Bytes as people read them: 12 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, "TB"
    return f"{size:.3g} {unit}"


def sizes(entries: list[Held], named: set[str]) -> Table:
    """A line for each stage."""
    by: dict[str, list[Held]] = defaultdict(list)
    for entry in entries:
        by["left by killed or stopped processes" if entry.left else entry.name.split("/")[0]].append(entry)
    table = Table(
        "Cache", "", [("", name) for name in ("stage", "entries", "size", "no run names")], 1, right=(1, 2, 3)
    )
    for stage, some in [*sorted(by.items()), ("all", entries)]:
        free = [e for e in some if e.name not in named or e.left]
        table.add(stage, f"{len(some):,}", amount(sum(e.size for e in some)), amount(sum(e.size for e in free)))
    return table


def where(root: Path, folders: list[str], words: list[str]) -> list[Path]:
    """The folders of the cache that runs used. Raises UserError for a run that does not say."""
    found: dict[Path, None] = {}
    for path, run in kept.chosen(kept.every(folders), words):
        if not run.get("stages"):
            raise UserError(f"{path} is from before run files said what they used; force=true makes it again")
        found |= dict.fromkeys(root / name for name in run["stages"])
    return [*found]


def main(words: list[str]) -> None:
    """size, path or prune. Raises UserError for what the user can mend."""
    what, *words = words or [""]
    if what not in ("size", "path", "prune"):
        raise ConfigError(f"{what or 'say what'}: size, path RUN or prune; {near(what, ('size', 'path', 'prune'))}")
    options = ("--results", "--runs", "--root", *(["--days"] if what == "prune" else []))
    found, words = kept.flags(words, options, ("--yes",) if what == "prune" else ())
    results = Path([*found["--results"], "results"][0])
    root = Path([*found["--root"], str(results / "cache")][0]).expanduser()
    folders = found["--runs"] or [str(results / "runs")]
    if what == "path":
        if not words:
            raise ConfigError("path: of which run? python -m bench.runs list shows their ids")
        for path in where(root, folders, words):
            print(path if path.is_dir() else f"{path} (gone)")
        return
    if words:
        raise ConfigError(f"{words[0]}: {what} takes options only; --help says which")
    entries = held(root)
    known = [Path(folder) for folder in folders if Path(folder).is_dir()]
    if missing := [folder for folder in found["--runs"] if not Path(folder).is_dir()]:
        raise UserError(f"no folder {missing[0]}")
    named, silent = stages(known) if known else (set(), 0.0)
    if what == "size":
        show(sizes(entries, named), console())
        return
    try:
        days = float([*found["--days"], "7"][0])
    except ValueError as error:
        raise ConfigError(f"--days={found['--days'][0]} is no number") from error
    go = [*spare(entries, named, silent, days)]
    total = amount(sum(entry.size for entry in go))
    if silent:
        print(
            "some runs are from before run files said what they used: what is older than those stays", file=sys.stderr
        )
    if "--yes" not in found:
        for entry in go:
            print(f"{entry.path}  {amount(entry.size)}")
        print(f"{len(go):,} folders, {total}, would go: add --yes")
        return
    gone = [entry for entry in go if removed(entry)]
    print(f"removed: {len(gone):,} folders, {amount(sum(entry.size for entry in gone))}")
    if len(gone) < len(go):
        print(f"{len(go) - len(gone):,} are in use and stay")


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: __doc__, main))
