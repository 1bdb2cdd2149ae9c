"""What papers report of a run (`expected:` in an experiment's yaml, conf/published): checked, and as run files hold it.

No hash knows of it: it is what a run is compared with (bench.report.published), not what it is.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bench import spec
from bench.errors import ConfigError, among, checked, near

# What is compared: percent of the owner's bits found, of the bits of an attacker's claim, utility in percent.
QUANTITIES = ("detection", "claim", "accuracy")
BEFORE = ("host", "none")  # knobs of rows that every attack's run has: the unmarked host, the victim
LAST = "last"  # the largest strength that a run has


@dataclass(frozen=True)
class Entry:
    """A published value, or one per method: what of which row. quantity: of QUANTITIES. published: percent, or {method:
    percent}. attack, knob, strength: of the row; attack null: of host or victim, knob `host` or `none`; strength null:
    the knob has none, `last`: the largest there is. setting: options that it was published for, by dotted name, nodes
    by label (model, data, attack.transfer; null: none); it adds to the block's. note: what else differs, if known."""

    quantity: str = among(*QUANTITIES)
    published: Any
    table: str = ""
    attack: str | None = None
    knob: str = "none"
    strength: Any = None
    setting: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        checked(self, "expected")
        values = self.published if isinstance(self.published, dict) else {"published": self.published}
        for name, value in values.items():
            if not _number(value) or not 0 <= value <= 100:
                raise ConfigError(f"{name}={value}: must be percent, from 0 to 100")
        if not values:
            raise ConfigError("published is empty: a number, or {method: number}")
        if self.strength is not None and self.strength != LAST and not _number(self.strength):
            raise ConfigError(f"strength={self.strength}: must be a number, null or {LAST}")
        if (self.attack is None) != (self.knob in BEFORE):
            raise ConfigError(f"knob={self.knob}, attack={self.attack}: knobs {' and '.join(BEFORE)} are of no attack")

    def value(self, method: str) -> float | None:
        return self.published.get(method) if isinstance(self.published, dict) else self.published


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parsed(cfg: DictConfig) -> tuple[str, list[Entry]]:
    """(source, entries) of `cfg.expected`, each entry with its whole setting. ConfigError in one line."""
    if (node := cfg.get("expected")) is None:
        return "", []
    block = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    keys = ("source", "setting", "entries")
    if not isinstance(block, dict) or not isinstance(block.get("entries"), list):
        raise ConfigError(f"expected: must have {', '.join(keys)}, the last a list")
    if unknown := sorted(block.keys() - set(keys)):
        raise ConfigError(f"expected.{unknown[0]}: no such key; {near(unknown[0], keys)}")
    if not isinstance(block.get("source"), str):
        raise ConfigError("expected.source is missing: the paper")
    found = []
    for i, entry in enumerate(block["entries"]):
        where = f"expected.entries[{i}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}={entry}: must have {', '.join(f.name for f in fields(Entry))}")
        whole = {**(block.get("setting") or {}), **(entry.get("setting") or {})}
        try:
            found.append(spec.build({"_target_": f"{__name__}.Entry", **entry, "setting": whole}, where))
        except ConfigError as error:
            raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    return block["source"], found


def of(cfg: DictConfig, method: str, attack: str) -> list[dict[str, Any]]:
    """What `cfg.expected` has of this method under this attack, and of its host and victim, as run files hold it.
    Raises ConfigError for a block that is none, and for a setting that names an option which is not there."""
    source, entries = parsed(cfg)
    found = []
    for entry in entries:
        if entry.attack not in (None, attack) or (value := entry.value(method)) is None:
            continue
        for key in entry.setting:
            node = cfg
            for part in key.split("."):
                if part not in (names := [*map(str, node)] if OmegaConf.is_dict(node) else []):
                    raise ConfigError(f"expected: setting {key}: no such option; {near(part, names)}")
                node = node[part]
        about = {"source": source, "table": entry.table, "quantity": entry.quantity, "knob": entry.knob}
        about |= {"strength": entry.strength, "published": value, "setting": entry.setting, "note": entry.note}
        found.append(about)
    return found


def chosen(setting: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """What a run (its file) has of the options that a setting names, nodes by label; None where it has none."""
    found = {}
    for key in setting:
        value = run["rows"][0][key] if key in ("model", "data") else _option(run["config"], key)
        if isinstance(value, dict):
            value = value.get("label") or os.path.basename(str(value.get("path")))
        found[key] = value
    return found


def _option(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
