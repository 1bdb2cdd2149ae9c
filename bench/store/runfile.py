"""Run files: one small JSON per run, {config, env, command, controls, rows, check}.

The check at its end is SHA-256 of every byte before it. Files of before there was one are read without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.metrics import Knob
from bench.store.files import as_json, write_text
from bench.types import ROW_FIELDS, ROW_LATER, Row

GATHERED = "runs.parquet"  # many of them in one: bench.store.parquet
FIELDS = frozenset(ROW_FIELDS) - frozenset(ROW_LATER)
LATER = dict.fromkeys(ROW_LATER)
VALUES = itemgetter(*ROW_FIELDS)
BEFORE = dict.fromkeys(("config", "env", "command", "controls"))  # some files are from before there were all of them
KNOWN = {*BEFORE, "rows", "outputs", "expected"}
CHECK = ',\n "check": "'
CONTROLS = ("random_keys", "false_positives")
COLUMNS = [*ROW_FIELDS, "goal", "max_damage", "alpha", *CONTROLS]


def run_path(results: str | Path, method: str, attack: str, run_id: str) -> Path:
    return Path(results) / "runs" / method / attack / f"{run_id}.json"


def write_run(
    path: Path,
    config: dict,
    env: dict,
    command: list[str] | None,
    controls: dict | None,
    rows: list[Row],
    outputs: list[dict] | None = None,
    expected: list[dict] | None = None,
    knobs: Mapping[str, Knob] | None = None,
    stages: Sequence[str] | None = None,
) -> None:
    """`command`: the words after `python -m bench` that composed the configuration, None where no command did.
    `controls`: what the random keys did (bench.controls), None where none were tried. `outputs`: what is measured of
    each suspect's outputs (bench.gallery), where a mark is read from them. `expected`: what papers report of such a run
    (bench.store.expected), where its experiment names any. `knobs`: what the attack says of its strengths.
    `stages`: what it used of the cache (bench.store.cache.used)."""
    more = ({} if outputs is None else {"outputs": outputs}) | ({"expected": expected} if expected else {})
    more |= {"knobs": {name: [*knob] for name, knob in knobs.items()}} if knobs else {}
    more |= {"stages": [*stages]} if stages else {}
    blocks = {"config": config, "env": env, "command": command, "controls": controls, **more}
    text = as_json({**blocks, "rows": [asdict(row) for row in rows]}).removesuffix("\n}\n")
    write_text(path, f'{text}{CHECK}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n')


def read_loose(path: str | Path) -> dict[str, Any]:
    """One run file as it lies there. Raises FileNotFoundError, UserError for one that cannot be read, and its subclass
    BrokenRun for anything that is no run file."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read now ({error.strerror}); it may be whole") from error
    try:
        run = BEFORE | json.loads(content, parse_constant=_constant)
        if (check := run.pop("check", None)) is not None:
            text = content.rpartition(CHECK.encode())[0]
            if hashlib.sha256(text).hexdigest() != check:
                raise ValueError("checksum differs: it was changed after it was written")
        # What changed may be the name of that entry.
        if any(isinstance(run[name], str) and len(run[name]) == 64 for name in run.keys() - KNOWN):
            raise ValueError("its checksum is called otherwise")
        for row in run["rows"]:
            if missing := FIELDS - row.keys():
                raise KeyError(", ".join(sorted(missing)))
            if not LATER.keys() <= row.keys():
                row.update({name: row.get(name) for name in LATER})
        _check(run)
        return run
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise BrokenRun(f"{path} is not a run file ({type(error).__name__}: {said}); delete it") from error


class BrokenRun(UserError):
    """A file that was read and is no run file."""


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


TYPES = [{"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}[f.type.split()[0]] for f in fields(Row)]
TYPES = [(*kinds, type(None)) if "None" in f.type else kinds for kinds, f in zip(TYPES, fields(Row), strict=True)]
SHARES = [ROW_FIELDS.index(name) for name in ("ber", "claim_ber", "ber_aligned", "auc", "auc_low", "auc_high")]
LOGS = [ROW_FIELDS.index(name) for name in ("log10_p", "claim_log10_p", "log10_p_aligned")]
STATES = ("ok", "skipped", "failed")
NODES = {"method": ("_target_",), "attack": ("goal",), "verify": ("alpha", "max_damage")}  # what is read of them
_known: set[tuple[type, ...]] = set()  # kinds of rows that fit: of millions there are a few


def _check(run: dict[str, Any]) -> None:
    """Raises ValueError for what no run of ours writes: everything that reads runs relies on what is looked at here."""
    blocks = {"config": dict, "env": dict, "rows": list}
    for name, kind in blocks.items():
        if not isinstance(run[name], kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    for name, kind in (("command", list), ("controls", dict), ("outputs", list), ("stages", list)):
        if not isinstance(run.get(name), (kind, type(None))):
            raise ValueError(f"{name} is no {kind.__name__}")
    for name, said in (run.get("knobs") or {}).items():
        kinds = tuple(map(type, said))
        if kinds not in ((str, number, bool, bool) for number in (float, int, type(None))):
            raise ValueError(f"knobs.{name} is no knob")
    for name, keys in NODES.items():
        node = run["config"].get(name)
        if not isinstance(node, dict) or any(key not in node for key in keys):
            raise ValueError(f"config.{name} lacks {', '.join(keys)}")
    for value in (run["config"]["verify"]["alpha"], run["config"]["verify"]["max_damage"]):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"config.verify: {value!r} is no number")
    for name in CONTROLS if run["controls"] else ():
        if type(run["controls"].get(name)) not in (int, type(None)):
            raise ValueError(f"controls.{name} is no whole number")
    for row in run["rows"]:
        values = VALUES(row)
        if (kinds := tuple(map(type, values))) not in _known:
            for name, kind, allowed in zip(ROW_FIELDS, kinds, TYPES, strict=True):
                if kind not in allowed:
                    raise ValueError(f"{name} is a {kind.__name__}")
            _known.add(kinds)
        for at in SHARES:
            if values[at] is not None and not 0 <= values[at] <= 1:
                raise ValueError(f"{ROW_FIELDS[at]} is {values[at]}")
        for at in LOGS:
            if values[at] is not None and values[at] > 0:
                raise ValueError(f"{ROW_FIELDS[at]} is {values[at]}")
        if row["status"] not in STATES:
            raise ValueError(f"status is {row['status']!r}")


def records(run: dict[str, Any]) -> list[tuple]:
    """The values of COLUMNS, of each row of a run."""
    verify, tried = run["config"]["verify"], run["controls"] or {}
    judge = (run["config"]["attack"]["goal"], verify["max_damage"], verify["alpha"], *map(tried.get, CONTROLS))
    return [(*VALUES(row), *judge) for row in run["rows"]]
