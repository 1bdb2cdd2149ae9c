"""The command line that a run's recorded configuration answers to: the inverse of what Hydra composes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cache, reduce
from typing import Any

from omegaconf import OmegaConf

from bench.cli import CONF

GROUPS = ("method", "attack", "model", "data", "train", "task")
ALWAYS = ("method", "attack", "model", "data")  # named although they may be the default
PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*")
WORDS = ("null", "true", "false", "nan", "inf")  # which Hydra would not read as text


@cache
def _choice(group: str, name: str, task: str) -> dict[str, Any]:
    """A group's yaml with what its `defaults` bring in on a task; interpolations as they stand."""
    own = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    node: dict[str, Any] = {}
    for item in own.pop("defaults", ["_self_"]):
        if item == "_self_":
            node |= own
        elif isinstance(item, str) and not item.startswith("/"):
            node |= _choice(group, item, task)
        elif isinstance(item, str):
            path, _, at = item.strip("/").partition("@")
            node |= _choice(*path.rsplit("/", 1), task) if at == "_here_" else {}
        else:
            ((key, chosen),) = item.items()
            other, _, at = key.partition("@")
            if not key.startswith("override "):
                *outer, last = at.split(".")
                place = reduce(lambda inner, name: inner.setdefault(name, {}), outer, node)
                place[last] = (
                    None if chosen is None else _choice(other.strip("/"), chosen.replace("${task}", task), task)
                )
    return node


@cache
def _choices(group: str, task: str) -> dict[str, dict[str, Any]]:
    files = sorted((CONF / group).glob("*.yaml"))
    return {path.stem: _choice(group, path.stem, task) for path in files}


@cache
def _main(task: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The usual choices of the groups and the options' defaults, on a task; interpolations as they stand."""
    options = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    usual = {key: value for item in options.pop("defaults") if isinstance(item, dict) for key, value in item.items()}
    path = CONF / "task" / f"{task}.yaml"
    for item in OmegaConf.load(path).get("defaults", []) if path.is_file() else ():
        if not isinstance(item, str):
            ((key, chosen),) = item.items()
            usual[key.removeprefix("override /").partition("@")[0]] = chosen
        elif item.endswith("@_global_"):
            name = item.strip("/").removesuffix("@_global_")
            for group, node in OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")).items():
                options[group] |= node
    return usual, options


def _task(config: dict[str, Any]) -> str:
    """The name of a configuration's task: its module's."""
    return str((config.get("task") or {}).get("_target_", "classification.")).split(".")[-2]


def _resolved(node: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A choice as it would be composed beside this configuration's own options."""
    if "${" not in repr(node):
        return node
    top = {key: value for key, value in config.items() if not isinstance(value, dict) or key == "task"}
    return OmegaConf.to_container(OmegaConf.create({**top, "node": node}), resolve=True)["node"]


def _text(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in WORDS and not re.search(r"\.\d|^_*\d", value)
        quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)
        return value if plain else "'" + re.sub(r"\\+$", lambda tail: tail[0] * 2, quoted) + "'"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value)


def _differences(node: dict[str, Any], chosen: dict[str, Any], at: str, config: dict[str, Any]) -> Iterator[str]:
    """Overrides that make `chosen` into `node`."""
    for key, value in node.items():
        if key == "_target_" or (key in chosen and chosen[key] == value):
            continue
        if isinstance(value, dict) and (group := _group(value, _task(config))):
            same = isinstance(chosen.get(key), dict) and chosen[key].get("_target_") == value["_target_"]
            words = _words(group, value, f"{at}.{key}", config, chosen[key] if same else None)
            yield from words if key in chosen else [f"+{words[0]}", *words[1:]]
        elif isinstance(value, dict) and isinstance(chosen.get(key), dict):
            yield from _differences(value, chosen[key], f"{at}.{key}", config)
        else:
            yield f"{'' if key in chosen else '+'}{at}.{key}={_text(value)}"


def _group(node: dict[str, Any], task: str) -> str | None:
    """The group that a node was chosen from, by its _target_."""
    chosen = node.get("_target_")
    return next((g for g in GROUPS if any(c.get("_target_") == chosen for c in _choices(g, task).values())), None)


def _words(
    group: str, node: dict[str, Any], at: str, config: dict[str, Any], default: dict[str, Any] | None = None
) -> list[str]:
    """The choice that leaves fewest differences, if `default` leaves more, and the differences."""
    fits = {n: c for n, c in _choices(group, _task(config)).items() if c.get("_target_") == node.get("_target_")}
    ways = [[*_differences(node, default, at, config)]] if default is not None else []
    for name, chosen in fits.items():
        word = f"{group}={name}" if at == group else f"{group}@{at}={name}"
        ways.append([word, *_differences(node, _resolved(chosen, config), at, config)])
    return min(ways, key=len)


def _outside(group: str, node: dict[str, Any]) -> list[str]:
    """A choice that conf/ does not know (--config-dir): named as its module is, every value given."""
    name = str(node["_target_"]).split(".")[-2:][0]
    return [f"{group}={name}", *_differences(node, dict.fromkeys(node, object()), group, {})]


def command(config: dict[str, Any], seeds: Iterable[int]) -> str:
    """The command that repeats a run's configuration for these seeds, what is default left out.

    `config` is a run file's: fully resolved. Where it runs (device, threads, results_dir, cache) is left to whoever
    types it. A method from outside conf/ comes with all its values and a DIR to fill in.
    """
    words, outside = [], False
    usual, defaults = _main(_task(config))
    for group in GROUPS:
        node = config.get(group)
        if not isinstance(node, dict) or "_target_" not in node:
            continue
        if any(c.get("_target_") == node.get("_target_") for c in _choices(group, _task(config)).values()):
            chosen = _words(group, node, group, config)
            words += chosen[chosen[0] == f"{group}={usual[group]}" and group not in ALWAYS :]
        else:
            words += _outside(group, node)
            outside = True
    words += _differences(config.get("verify", {}), _resolved(defaults["verify"], config), "verify", config)
    seeds = sorted(set(seeds))
    words.append(f"seed={','.join(map(str, seeds))}")
    start = ["python", "-m", "bench", *["--config-dir", "DIR"] * outside, *["-m"] * (len(seeds) > 1)]
    return shlex.join([*start, *words])
