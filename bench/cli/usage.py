"""--help, and a look at the command line before Hydra starts: a typo is one line that names what is valid."""

from __future__ import annotations

import atexit
import fnmatch
import gc
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.cli.compose import CONF, composed
from bench.errors import ConfigError, framed, near

GROUPS = ("method", "attack", "model", "data", "train", "task", "launcher", "logger", "experiment", "scale")

OTHER_CONFIG = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")

HEAD = """\
python -m bench method=NAME attack=NAME ... [group.option=value ...] [seed=0]

Trains a host, embeds a watermark, attacks it, tabulates bit error rate and
utility. What is done is kept below results/ and not done again.

  python -m bench method=neuralmark attack=prune    one experiment
  python -m bench -m method=uchida,neuralmark       a sweep: all combinations
  python -m bench method=uchida --cfg job           the whole configuration
  python -m bench.layers model=vit_tiny             weights for a mark
  python -m bench.report                            tables, figures of all runs
  python -m bench.claims                            verdicts on papers' claims
"""


def options(group: str) -> list[str]:
    """Names that a configuration group offers; of experiments the papers' claims too, a folder deeper."""
    folder = CONF / group
    deeper = folder.glob("claims/*.yaml") if group == "experiment" else ()
    return [p.relative_to(folder).with_suffix("").as_posix() for p in [*sorted(folder.glob("*.yaml")), *sorted(deeper)]]


def first_comment(path: Path) -> str:
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in lines if not line.startswith("@package")), "")


def help_text() -> str:
    """Groups and their choices, a line each, from the first comment of each file; then the single options."""
    out = [HEAD]
    for group in GROUPS:
        out.append(f"{group}=")
        for name in options(group):
            width = 31 if "/" in name else 18
            out.append(f"  {name:{width}} {first_comment(CONF / group / f'{name}.yaml')}")
    out.append("options")
    node = ""
    for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines():
        node = line[:-1] if re.match(r"\w+:$", line) else node
        if found := re.match(r"( *)(\w+): +(\S+) +# (.*)", line):
            name = f"{node}.{found[2]}" if found[1] else found[2]
            out.append(f"  {f'{name}={found[3]}':28} {found[4]}")
    return "\n".join(out)


def problem(argv: list[str]) -> str:
    """What is wrong with a command line, in one line, or an empty string.

    Each choice of a swept group is looked at once, with the first choice of the others: the sweep's own
    composition covers the rest.
    """
    flags = [word for word in argv if word.startswith("-")]
    if any(flag.split("=")[0] in OTHER_CONFIG for flag in flags):
        return ""  # somebody else's configuration: Hydra checks it
    # A word after --cfg and its like belongs to that flag.
    takes = [False, *(word in ("--cfg", "-c", "--package", "-p", "--info", "-i") for word in argv)]
    overrides = [word for word, taken in zip(argv, takes, strict=False) if not taken and not word.startswith("-")]
    parsed = []
    for word in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            key, equals, value = word.partition("=")
            quoted = shlex.quote(f'{key}="{value}"') if equals and '"' not in value and "'" not in value else ""
            hint = f"text with = , brackets, blanks or odd letters: {quoted}" if quoted else "quote brackets and braces"
            return f"cannot read {word}: {in_one_line(error)} (in a shell, {hint})"
    # An experiment may be a sweep by itself.
    if not {"-m", "--multirun"} & set(flags) and not any(o.key_or_group == "experiment" for o in parsed):
        swept = [o for o in parsed if o.is_sweep_override()]
        if swept:
            key, _, value = swept[0].input_line.partition("=")
            one = shlex.quote(f'{key}="{value}"')
            return f"{swept[0].input_line}: several values are a sweep: add -m (one value with a comma: {one})"
    try:
        values = {o.input_line: each_word(o) for o in parsed}
    except HydraException:
        return "an interval cannot be enumerated: sweep over a,b,c or range(0,3)"
    if empty := next((line for line, choices in values.items() if not choices), ""):
        return f"{empty} matches nothing"
    first = {line: choices[0] for line, choices in values.items()}
    trials = [list(first.values())]
    for o in parsed:
        if "/" not in o.key_or_group and o.get_key_element().lstrip("+~") in GROUPS:
            for value in values[o.input_line][1:]:
                trials.append(list({**first, o.input_line: value}.values()))
    for trial in trials:
        try:
            hole = _hole(composed(trial, return_hydra_config=True))
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: experiment=null
            return _explain(error, trial)
        if hole:
            return f"{hole} has no value: give {hole}=..."
    return ""


def each_word(override: Override) -> list[str]:
    """An override as one command-line word per swept value. Raises HydraException for an interval."""
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, Glob):
        names = [n for n in options(key) if any(fnmatch.fnmatch(n, p) for p in value.include)]
        return [f"{key}={n}" for n in names if not any(fnmatch.fnmatch(n, p) for p in value.exclude)]
    return [f"{key}={word}" for word in override.sweep_string_iterator()]


def _hole(cfg: DictConfig) -> str:
    """The first mandatory value (`???`) that nobody gave."""
    # Not of the whole: options beside the groups may ask Hydra for what it knows only of a running job.
    nodes = (node for group in GROUPS if OmegaConf.is_config(node := cfg.get(group)))
    return min((key for node in nodes for key in OmegaConf.missing_keys(node)), default="")


def _explain(error: Exception, trial: list[str]) -> str:
    text = str(error)
    if found := re.search(r"Could not find '([\w/@.]+)/([^'/]*)'", text):
        group, name = found[1].split("@")[0], found[2]
        if group == "experiment/claims":
            group, name = "experiment", f"claims/{name}"
        if group == "hydra/launcher":
            return f"launcher={name} is not installed: pip install -e '.[{name}]'"
        known = options(group)
        return f"unknown {group} {name!r}; {near(name, known)}" if known else f"unknown group {group!r}"
    if found := re.search(r"Could not override '([\w.@/]+)'", text):
        key = found[1]
        if key.startswith("model.kwargs"):
            return f"{key}: give arguments of the network's constructor one by one: +model.kwargs.NAME=VALUE"
        if "no match in the defaults list" in text:
            return f"{key}: no such group; {near(key, GROUPS)}"
        parent, _, name = key.rpartition(".")
        words = [w for w in trial if not w.split("=")[0].lstrip("+~").startswith(key)]
        try:
            node = OmegaConf.select(composed(words), parent) if parent else composed()
            names = [str(k) for k in node if k != "_target_"]
            if name in names and OmegaConf.is_dict(node[name]):
                return f"{key} has entries of its own: change one, {key}.NAME=VALUE, or add one, ++{key}.NAME=VALUE"
        except (HydraException, OmegaConfBaseException, TypeError):
            names = list(GROUPS)
        return f"{key}: no such key; {near(name, names)}"
    return in_one_line(error)


def in_one_line(error: Exception) -> str:
    skip = ("See https", "To append", "Set the environment", "full_key", "object_type", "reference_type")
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(skip))


def check(argv: list[str], prefix: str = "") -> None:
    """Raises ConfigError, after `prefix`, for a command line that has a `problem`."""
    if wrong := problem(argv):
        raise ConfigError(f"{prefix}{wrong}")


def answer(
    argv: list[str], doc: Callable[[], str], run: Callable[[list[str]], bool | None], kept: str = "stages and runs"
) -> int:
    """The frame of a command: help, or `run` on its words; exit code, 1 where that returns False.

    What the user can mend is one line. After an interruption, what is `kept` is said.
    """
    # At its end the interpreter would look at all objects once more, for cycles: seconds, of torch's and a run's.
    atexit.register(gc.freeze)

    def work() -> int:
        if any(word in ("-h", "--help") for word in argv):
            print(doc())
            return 0
        return 1 if run(argv) is False else 0

    return framed(work, kept, "" if "debug=true" in argv else "debug=true")
