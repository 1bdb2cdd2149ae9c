"""The configuration's folder, and a configuration composed from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

HERE = Path(__file__).resolve()
INSTALLED = HERE.parents[1] / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else HERE.parents[2] / "conf"


def composed(overrides: Iterable[str] = (), **more: Any) -> DictConfig:
    """The main configuration under a command line's words; `more` is for Hydra's `compose`, whose errors it raises."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*overrides], **more)
