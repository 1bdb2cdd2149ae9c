"""YAML node -> validated dataclass; canonical form, identity, hash and seed of a stage.

The yaml is the only place where a default lives: the dataclass named by `_target_` is its schema, and a key it
does not know, a value of the wrong type and a missing value are each one line that lists what is valid.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.errors import ConfigError, near


def target(node: DictConfig | dict, where: str) -> type:
    """The dataclass that a node's `_target_` names."""
    path = node.get("_target_") if node else None
    if not path:
        raise ConfigError(f"{where} has no _target_; its yaml must name a dataclass, e.g. methods.uchida.Uchida")
    module, _, name = str(path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        own = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        hint = f"; {error.name}.py goes beside the folder that --config-dir names, or on PYTHONPATH" if own else ""
        raise ConfigError(f"{where}._target_={path}: {error}{hint}") from error
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
        for f in fields(cls):
            if str(f.type).startswith("list[") and isinstance(value := values.get(f.name), (int, float, str)):
                raise ConfigError(f"{at}{f.name}={value}: takes a list: '{at}{f.name}=[{value}]'")
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(values)))
    except OmegaConfBaseException as error:
        key = f"{at}{error.full_key}" if error.full_key else where
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}; valid keys: {', '.join(names)}") from error


def kind(obj: Any) -> str:
    """The registered name of a method or attack: the module (and yaml file) it is written in."""
    return type(obj).__module__.rpartition(".")[2]


def later(neutral: Any, hashed: bool = True, check: Any = None) -> Any:
    """A dataclass field (`bias_rate: float = spec.later(1.0)`) that came after runs were recorded: at its neutral value
    it does what was done before it was there, and no hash covers it, so that what was made then is found again. One
    that is not `hashed` never is: it changes how something is made, not what. check: errors.within or errors.among."""
    about = {"later": hashed, "neutral": neutral} | (dict(check.metadata) if check else {})
    if isinstance(neutral, list):
        return field(default_factory=neutral.copy, metadata=about)
    return field(default=neutral, metadata=about)


def file() -> Any:
    """A dataclass field (`logo: str | None = spec.file()`) that holds a file's path, which hashes tell by its content;
    errors.checked looks whether it is there."""
    return field(metadata={"file": True})


def identity(obj: Any, where: str, **told: Any) -> dict[str, Any]:
    """What a stage hash covers of a dataclass: its canonical form, files by their content, and nodes (dicts with a
    `_target_`, inside dicts too) by the identities of what they build.

    told: identities of fields that somebody knows better. where: what errors call it. Raises ConfigError.
    """

    def known(value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return value
        if "_target_" not in value:
            return {key: known(item, f"{at}.{key}") for key, item in value.items()}
        made = build(value, at)
        return made.identity() if hasattr(made, "identity") else identity(made, at)

    found = canonical(obj)
    for f in (f for f in fields(obj) if f.name in found):
        value = getattr(obj, f.name)
        if f.name in told:
            found[f.name] = told[f.name]
        elif f.metadata.get("file"):
            found[f.name] = sha256(Path(value)) if value else None
        else:
            found[f.name] = known(found[f.name], f"{where}.{f.name}")
    return found


def sha256(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def canonical(obj: Any) -> Any:
    """A dataclass, tensor-free, as plain JSON values with its class name: what a hash is taken over."""
    if is_dataclass(obj) and not isinstance(obj, type):
        values = asdict(obj)
        for f in fields(obj):
            hashed = f.metadata.get("later", True)
            if not hashed or ("later" in f.metadata and values[f.name] == f.metadata["neutral"]):
                del values[f.name]
        return {"class": f"{type(obj).__module__}.{type(obj).__name__}", **canonical(values)}
    if isinstance(obj, dict):
        return {str(k): canonical(v) for k, v in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [canonical(v) for v in obj]
    return obj


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's leaves by dotted names."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def digest(obj: Any, length: int = 16) -> str:
    """Hex SHA-256 of the canonical form: equal for equal configurations, whatever the order of their keys."""
    text = json.dumps(canonical(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def derive(seed: int, *roles: object) -> int:
    """A seed of 63 bits for one role: independent streams for all roles and seeds (SHA-256)."""
    text = "/".join([str(int(seed)), *map(str, roles)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
