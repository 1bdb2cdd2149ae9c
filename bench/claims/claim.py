"""A claim: a file of conf/experiment/claims, read for one command line."""

from __future__ import annotations

import inspect
import itertools
import json
import shlex
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from bench.cli import usage
from bench.cli.compose import CONF, composed
from bench.errors import ConfigError, choice
from bench.store import expected

# What may have several values in one claim, beside what it compares: each of these is judged by itself, or is a seed.
SWEPT = ("seed", "attack", "model", "data", "model.name", "data.path")


@dataclass(frozen=True)
class Claim:
    """A file of conf/experiment/claims for one command line: its jobs as words for Hydra, what it says, who judges; and
    the configuration of its first job."""

    name: str
    jobs: list[list[str]]
    paper: str
    text: str
    criterion: str
    parameters: dict[str, Any]
    overrides: list[str]
    config: DictConfig

    @property
    def command(self) -> str:
        return shlex.join(["python", "-m", "bench.claims", self.name, *self.overrides])

    @property
    def rule(self) -> str:
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in self.parameters.items())
        return f"{self.criterion}({given})".replace('"', "")


def names() -> list[str]:
    """Every claim that conf/experiment/claims holds."""
    return sorted(path.stem for path in (CONF / "experiment" / "claims").glob("*.yaml"))


def read(name: str, overrides: list[str]) -> Claim:
    """A claim and its jobs for a command line: an axis given there replaces the file's, as in `python -m bench`.

    Raises ConfigError for an override that does not compose, an unknown criterion and parameters that it does not take,
    and for several values of an option that the claim does not compare.
    """
    parser, experiment = OverridesParser.create(), f"experiment=claims/{name}"
    usage.check([experiment, *overrides], f"{name}: ")
    given = parser.parse_overrides(overrides)
    first = [usage.each_word(o)[0] for o in given]
    cfg = composed([experiment, *first], return_hydra_config=True)
    own = parser.parse_overrides([f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()])
    axes = {o.get_key_element(): o for o in [*own, *given]}
    usage.check([experiment, *(o.input_line for o in axes.values())], f"{name}: ")
    expected.parsed(cfg)
    claim = OmegaConf.to_container(cfg.claim, resolve=True)
    parameters = dict(claim["criterion"])
    criterion = parameters.pop("name")
    from bench.claims.criteria import CRITERIA  # after what is quicker to refuse

    choice(f"{name}: criterion", criterion, CRITERIA)
    try:
        inspect.signature(CRITERIA[criterion]).bind([], **parameters)
    except TypeError as error:
        raise ConfigError(f"{name}: criterion {criterion}: {error}") from error
    words = {o.input_line: usage.each_word(o) for o in axes.values()}
    compared = parameters.get("axis")
    for key, o in axes.items():
        if len(words[o.input_line]) > 1 and key.lstrip("+") not in (*SWEPT, compared):
            beside = f"{compared} and " if compared else ""
            raise ConfigError(
                f"{name}: {o.input_line}: a verdict is on one value of it; {beside}seeds may have several"
            )
    # Once, also where a value was given twice: seeds are counted.
    jobs = [[experiment, *job] for job in dict.fromkeys(itertools.product(*words.values()))]
    return Claim(name, jobs, claim["paper"], claim["text"], criterion, parameters, overrides, cfg)
