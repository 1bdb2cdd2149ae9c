"""A look at the command line before Hydra starts: a typo is one line that names what is valid."""

from __future__ import annotations

import atexit
import fnmatch
import gc
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.cli.compose import CONF, CONFIG_DIR, GROUPS, composed, placed
from bench.errors import ConfigError, framed, near

OTHER_CONFIG = ("--config-path", "-cp", "--config-name", "-cn")

KEPT = "finished stages and runs are kept, and of a long stage its last checkpoint"  # after Ctrl-C
FLAGS = (  # Hydra's own
    *("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run"),
    *("-m", "--multirun", "-sc", "--shell-completion", "-i", "--info", "--experimental-rerun"),
    *CONFIG_DIR,
    *OTHER_CONFIG,
)
TAKES = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun", *OTHER_CONFIG)  # the next word too


def files(group: str, folders: Iterable[str | Path] = ()) -> dict[str, Path]:
    """The files of a configuration group by the names that it offers, in order; of experiments the papers' claims too,
    a folder deeper. `folders`: those of --config-dir, whose choices come after ours."""
    found: dict[str, Path] = {}
    for folder in (Path(place) / group for place in (CONF, *folders)):
        deeper = sorted(folder.glob("claims/*.yaml")) if group == "experiment" else ()
        for path in [*sorted(folder.glob("*.yaml")), *deeper]:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)  # as Hydra has it: first found
    return found


def options(group: str, folders: Iterable[str | Path] = ()) -> list[str]:
    """Names that a configuration group offers."""
    return [*files(group, folders)]


def problem(argv: list[str]) -> str:
    """What is wrong with a command line, in one line, or an empty string.

    Each choice of a swept group is looked at once, with the first choice of the others: the sweep's own
    composition covers the rest.
    """
    folders, argv = placed(argv)
    flags = [word for word in argv if word.startswith("-")]
    if any(flag.split("=")[0] in OTHER_CONFIG for flag in flags):
        return ""  # somebody else's configuration: Hydra checks it
    if wrong := _flag(argv, folders):
        return wrong
    # A word after --cfg and its like belongs to that flag.
    takes = [False, *(word in TAKES for word in argv)]
    overrides = [word for word, taken in zip(argv, takes, strict=False) if not taken and not word.startswith("-")]
    sweeps = bool({"-m", "--multirun"} & set(flags))
    if wrong := next(filter(None, (_span(word, sweeps) for word in overrides)), ""):
        return wrong
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
    if not sweeps and not any(o.key_or_group == "experiment" for o in parsed):
        swept = [o for o in parsed if o.is_sweep_override()]
        if swept:
            key, _, value = swept[0].input_line.partition("=")
            if _listed(key, [word for word in overrides if word != swept[0].input_line], folders):
                return f"{swept[0].input_line}: takes a list: {shlex.quote(f'{key}=[{value}]')}"
            one = shlex.quote(f'{key}="{value}"')
            return f"{swept[0].input_line}: several values are a sweep: add -m (one value with a comma: {one})"
    try:
        values = {o.input_line: each_word(o, folders) for o in parsed}
    except HydraException:
        return "an interval cannot be enumerated: sweep over a,b,c or range(0,3)"
    if empty := next((line for line, choices in values.items() if not choices), ""):
        return f"{empty} matches nothing"
    for line, choices in values.items():
        if twice := [word for i, word in enumerate(choices) if word in choices[:i]]:
            return f"{line}: {twice[0].partition('=')[2]} stands there twice, and is one run"
    first = {line: choices[0] for line, choices in values.items()}
    trials = [list(first.values())]
    for o in parsed:
        if "/" not in o.key_or_group and o.get_key_element().lstrip("+~") in GROUPS:
            for value in values[o.input_line][1:]:
                trials.append(list({**first, o.input_line: value}.values()))
    for trial in trials:
        try:
            cfg = composed(trial, folders, return_hydra_config=True)
            hole, nowhere = _hole(cfg), _nowhere(cfg)
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: experiment=null
            return _explain(error, trial, folders)
        if hole:
            return f"{hole} has no value: give {hole}=..."
        if nowhere:
            return nowhere
    return ""


def _flag(argv: list[str], folders: list[Path]) -> str:
    """What is wrong with the flags of a command line: options here have no dashes."""
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if not word.startswith("-") or any(known == flag or known.startswith(flag) for known in FLAGS if flag != "-"):
            continue
        name = flag.lstrip("-").replace("-", "_")
        if name in GROUPS or name in composed(folders=folders) or "." in name:
            value = value if equals else next((w for w in argv[i + 1 : i + 2] if not w.startswith("-")), "VALUE")
            return f"{flag}: write {name}={value}"
        return f"{flag}: no such flag; {near(flag, [f for f in FLAGS if f.startswith('--')])}"
    return ""


def _span(word: str, sweeps: bool) -> str:
    """What a span of numbers would be written as, where a word has one as other programs write it: seed=0..3."""
    found = re.fullmatch(r"([\w.]+)=(\d+)(\.\.\.?|-)(\d+)", word)
    if not found or (found[3] == "-" and found[1] != "seed"):
        return ""
    return f"{word}: write {'-m ' * (not sweeps)}{shlex.quote(f'{found[1]}=range({found[2]},{int(found[4]) + 1})')}"


def _listed(key: str, words: list[str], folders: list[Path]) -> bool:
    """Whether the option takes a list."""
    try:
        return OmegaConf.is_list(OmegaConf.select(composed(words, folders), key))
    except (HydraException, OmegaConfBaseException, ValueError):
        return False


def each_word(override: Override, folders: Iterable[Path] = ()) -> list[str]:
    """An override as one command-line word per swept value. Raises HydraException for an interval."""
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, Glob):
        names = [n for n in options(key, folders) if any(fnmatch.fnmatch(n, p) for p in value.include)]
        return [f"{key}={n}" for n in names if not any(fnmatch.fnmatch(n, p) for p in value.exclude)]
    return [f"{key}={word}" for word in override.sweep_string_iterator()]


def _hole(cfg: DictConfig) -> str:
    """The first mandatory value (`???`) that nobody gave."""
    # Not of the whole: options beside the groups may ask Hydra for what it knows only of a running job.
    nodes = (node for group in GROUPS if OmegaConf.is_config(node := cfg.get(group)))
    return min((key for node in nodes for key in OmegaConf.missing_keys(node)), default="")


def _nowhere(cfg: DictConfig) -> str:
    """What is wrong with where results are to go: a mistyped place is not to be made, however deep."""
    for name in ("results_dir", "cache.root"):
        place = Path(str(OmegaConf.select(cfg, name))).expanduser()
        if place.is_absolute() and not place.is_relative_to(Path.cwd()) and not place.parent.is_dir():
            if name == "cache.root" and place.parent == Path(str(cfg.results_dir)).expanduser():
                continue
            return f"{name}={place}: {place.parent} is no folder: make it first, if that is the place"
    return ""


def at_home(word: str) -> str:
    """A word of the command line, a place in it that begins with ~ written out: no shell does that within a word."""
    return re.sub(r"^([+~]*(?:results_dir|cache\.root)=[\"']?)~(?=/|[\"']?$)", rf"\g<1>{Path.home()}", word)


def _explain(error: Exception, trial: list[str], folders: list[Path]) -> str:
    text = str(error)
    if found := re.search(r"Could not find '([\w/@.]+)/([^'/]*)'", text):
        group, name = found[1].split("@")[0], found[2]
        if group == "experiment/claims":
            group, name = "experiment", f"claims/{name}"
        if group == "hydra/launcher":
            return f"launcher={name} is not installed: pip install -e '.[{name}]'"
        known = options(group, folders)
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
            node = OmegaConf.select(composed(words, folders), parent) if parent else composed(folders=folders)
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


def answer(argv: list[str], doc: Callable[[], str], run: Callable[[list[str]], bool | None], kept: str = KEPT) -> int:
    """The frame of a command: help, or `run` on its words; exit code, 1 where that returns False.

    What the user can mend is one line. After an interruption, what is `kept` is said.
    """
    # At its end the interpreter would look at all objects once more, for cycles: seconds, of torch's and a run's.
    atexit.register(gc.freeze)

    def work() -> int:
        if any(word in ("-h", "--help") for word in argv):
            print(doc())
            return 0
        return 1 if run([*map(at_home, argv)]) is False else 0

    return framed(work, kept, "" if "debug=true" in argv else "debug=true")
