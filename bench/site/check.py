"""Whether a run file may stand in the table: complete, as its command says, and the same when it is made again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import spec
from bench.errors import UserError
from bench.metrics import is_control, missing
from bench.store.runfile import read_loose

LEAST = 1000  # random keys
# Of a row: when, where and how fast it was made.
CIRCUMSTANCES = ("seconds", "peak_mb", "device", "commit", "created_at", "threads")
# What a run fills in from its choices.
FILLED = ("verify.max_damage", "verify.claim", "attack.knows", "attack.data")


def complaints(path: Path) -> list[str]:
    """What a run file lacks, a line each; nothing is trained and no data are read."""
    try:
        run = read_loose(path)
    except (UserError, OSError) as error:
        return [str(error)]
    rows, said = run["rows"], []
    if not rows:
        return ["it holds no rows"]
    row = rows[0]
    place = Path(row["method"]) / row["attack"] / f"{row['run_id']}.json"
    if path.parts[-3:] != place.parts:
        said.append(f"it belongs at {place.as_posix()}")
    if len({(r["run_id"], r["method"], r["attack"], r["seed"]) for r in rows}) > 1:
        said.append("its rows are of several runs")
    said += [f"failed: {r['error']}" for r in rows if r["status"] == "failed"]
    knobs = {r["knob"] for r in rows if r["status"] == "ok"}
    marked = row["method"] != "none"
    wanted = {"none": "victim", **({"host": "unmarked host"} if marked else {})}
    said += [f"no row of the {name}" for knob, name in wanted.items() if knob not in knobs]
    if row["attack"] != "none" and not any(r["knob"] not in wanted for r in rows) and "skipped" not in _states(rows):
        said.append("no row of the attack")
    said += [f"{r['knob']} verifies under the owner's key" for r in rows if is_control(r["knob"]) and r["detected"]]
    if marked and "skipped" not in _states(rows):
        tried = (run["controls"] or {}).get("random_keys") or 0
        said += [f"{tried:,} random keys were tried, fewer than {LEAST:,} (verify.keys)"] if tried < LEAST else []
        said += [f"{hits} random keys verify"] if (hits := (run["controls"] or {}).get("false_positives")) else []
    for name in sorted({str(r["commit"]) for r in rows}):
        if name == "None":
            said.append("no commit: it was made outside a checkout")
        elif name.endswith("+"):
            said.append(f"commit {name}: there were changes besides")
    return [*said, *_composed(run)]


def _states(rows: list[dict[str, Any]]) -> set[str]:
    return {row["status"] for row in rows if row["knob"] == "none"}


def _composed(run: dict[str, Any]) -> Iterator[str]:
    """What the recorded command composes to, against the recorded configuration."""
    if run["command"] is None:
        yield "no command is recorded"
        return
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from bench.cli.compose import composed
    from bench.report.content import BESIDE  # options that change no number
    from bench.run import BESIDE as ASKED

    beside = {*BESIDE, *ASKED} - {"seed"}
    try:
        made = OmegaConf.to_container(composed(run["command"]), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        yield f"its command does not compose: {' '.join(str(error).split())[:200]}"
        return
    said, told = (
        {key: value for key, value in spec.flat(node).items() if key.partition(".")[0] not in beside}
        for node in (made, run["config"])
    )
    for key in sorted((said.keys() | told.keys()) - {*FILLED}):
        if key not in told or key not in said:
            yield f"{key} is {'not recorded' if key in said else 'recorded, and no option'}"
        elif said[key] != told[key]:
            yield f"{key} is {told[key]}, and its command makes it {said[key]}"


def again(path: Path, folder: Path, options: list[str]) -> list[str]:
    """Makes a run again from nothing in `folder`, and says what came out otherwise.

    options: words of a command line put behind the recorded ones, for a path of data that lies elsewhere here.
    """
    from bench.cli.compose import composed
    from bench.run import job

    run = read_loose(path)
    words = [*(run["command"] or []), *options]
    threads = (run["env"] or {}).get("threads")
    here = [f"results_dir={folder.as_posix()}", *([f"threads={threads}"] if threads else [])]
    outcome = job(composed([*words, *here]), words=words)
    if not outcome.rows:
        return [f"it cannot be made again here: {outcome.message}"]
    before, now = run["rows"], [vars(row) for row in outcome.rows]
    if len(before) != len(now):
        return [f"{len(before)} rows, and {len(now)} when made again"]
    said = []
    for old, new in zip(before, now, strict=True):
        at = f"{old['knob']} {'' if missing(old['strength']) else old['strength']}".strip()
        for name in sorted(old.keys() & new.keys() - {*CIRCUMSTANCES}):
            if not _same(old[name], new[name]):
                said.append(f"{at}: {name} {old[name]}, again {new[name]}")
    return said


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-12)
    return old == new
