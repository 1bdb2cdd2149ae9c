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

HERE = Path(__file__).resolve()
INSTALLED = HERE.parents[1] / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else HERE.parents[2] / "conf"


def composed(overrides: Iterable[str] = (), folders: Iterable[str | Path] = (), **more: Any) -> DictConfig:
    """The main configuration under a command line's words, with choices from `folders` (--config-dir) too; `more` is
    for Hydra's `compose`, whose errors it raises."""
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
