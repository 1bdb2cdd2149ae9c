"""YAML node -> validated dataclass; canonical form, hash and seed of a stage.

The yaml is the only place where a default lives: the dataclass named by `_target_` is its schema, and a key it
does not know, a value of the wrong type and a missing value are each one line that lists what is valid.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.types import ConfigError


def near(name: str, valid: Iterable[str], all_below: int = 40) -> str:
    """`did you mean ...; valid: ...`, for the end of an error line."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return hint + (f"valid: {', '.join(valid)}" if len(valid) <= all_below else f"{len(valid)} names are valid")


def choice(name: str, value: Any, valid: Iterable[str]) -> None:
    """Raises ConfigError unless value is one of valid."""
    valid = tuple(valid)
    if value not in valid:
        raise ConfigError(f"{name}={value}: not known; {near(str(value), valid)}")


def at_least(name: str, value: float, bound: float) -> None:
    """Raises ConfigError for a number below its bound."""
    if value < bound:
        raise ConfigError(f"{name}={value}: must be at least {bound}")


def increasing(name: str, values: list, low: float, high: float) -> None:
    """Raises ConfigError unless a list of strengths is non-empty, distinct and within [low, high]."""
    if not values or len(set(values)) != len(values) or min(values) < low or max(values) > high:
        raise ConfigError(f"{name}={values}: needs distinct values from {low} to {high}, at least one")


def target(node: DictConfig | dict, where: str) -> type:
    """The dataclass that a node's `_target_` names."""
    path = node.get("_target_") if node else None
    if not path:
        raise ConfigError(f"{where} has no _target_; its yaml must name a dataclass, e.g. methods.uchida.Uchida")
    module, _, name = str(path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}._target_={path}: {error}") from error
    if not is_dataclass(cls):
        raise ConfigError(f"{where}._target_={path} is not a dataclass")
    return cls


def build(node: DictConfig | dict, where: str) -> Any:
    """A node as the frozen dataclass it names. Raises ConfigError in one line."""
    cls = target(node, where)
    at = f"{where}." if where else ""
    names = [f.name for f in fields(cls) if f.init]
    node = OmegaConf.create(node) if isinstance(node, dict) else node
    try:
        values = {k: v for k, v in OmegaConf.to_container(node, resolve=True).items() if k != "_target_"}
        if unknown := sorted(set(values) - set(names)):
            raise ConfigError(f"{at}{unknown[0]}: no such key; {near(unknown[0], names)}")
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(values)))
    except OmegaConfBaseException as error:
        key = f"{at}{error.full_key}" if error.full_key else where
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}; valid keys: {', '.join(names)}") from error


def kind(obj: Any) -> str:
    """The registered name of a method or attack: the module (and yaml file) it is written in."""
    return type(obj).__module__.rpartition(".")[2]


def canonical(obj: Any) -> Any:
    """A dataclass, tensor-free, as plain JSON values with its class name: what a hash is taken over."""
    if is_dataclass(obj) and not isinstance(obj, type):
        return {"class": f"{type(obj).__module__}.{type(obj).__name__}", **canonical(asdict(obj))}
    if isinstance(obj, dict):
        return {str(k): canonical(v) for k, v in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [canonical(v) for v in obj]
    return obj


def digest(obj: Any, length: int = 16) -> str:
    """Hex SHA-256 of the canonical form: equal for equal configurations, whatever the order of their keys."""
    text = json.dumps(canonical(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def derive(seed: int, *roles: object) -> int:
    """A seed of 63 bits for one role: independent streams for all roles and seeds (SHA-256)."""
    text = "/".join([str(int(seed)), *map(str, roles)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
