"""The configuration's folder, those that --config-dir names, and a configuration composed from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from bench.errors import ConfigError

HERE = Path(__file__).resolve()
INSTALLED = HERE.parents[1] / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else HERE.parents[2] / "conf"


GROUPS = ("method", "attack", "model", "data", "train", "task", "launcher", "logger", "experiment", "scale")
CONFIG_DIR = ("--config-dir", "-cd")


def placed(argv: Iterable[str]) -> tuple[list[Path], list[str]]:
    """(folders that --config-dir names, the other words). Raises ConfigError for one that is no folder of choices."""
    folders, rest, words = [], [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in CONFIG_DIR:
            rest.append(word)
            continue
        folder = Path(value if equals else next(words, "")).expanduser()
        if not str(folder) or not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder")
        if not any((folder / group).is_dir() for group in GROUPS):
            hint = f": {folder / 'conf'}?" if (folder / "conf").is_dir() else ""
            raise ConfigError(f"--config-dir {folder}: holds no folder method, attack, model ... of choices{hint}")
        folders.append(folder)
    return folders, rest


def composed(overrides: Iterable[str] = (), folders: Iterable[str | Path] = (), **more: Any) -> DictConfig:
    """The main configuration under a command line's words, with choices from `folders`, and those that the words name
    (--config-dir), whose modules are then found; `more` is for Hydra's `compose`, whose errors it raises."""
    named, overrides = placed(overrides)
    beside(folders := [*folders, *named])
    places = [Path(folder).absolute().as_uri() for folder in folders]
    search = [f"hydra.searchpath={json.dumps(places)}"] if places else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*search, *overrides], **more)


def beside(folders: Iterable[str | Path]) -> None:
    """Let modules be found that lie beside folders of choices: conf/method/mine.yaml names mine.Mine, of mine.py."""
    for folder in folders:
        if (place := str(Path(folder).absolute().parent)) not in sys.path:
            sys.path.append(place)  # last: nothing of the user's shadows what is installed
