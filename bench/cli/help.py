"""--help: what there is, on one screen; `--help GROUP`: its choices, a line each; `--help GROUP=NAME`: its options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from bench.cli.compose import CONF, GROUPS, placed
from bench.cli.usage import files, options
from bench.errors import ConfigError, near

HEAD = """\
python -m bench method=NAME attack=NAME ... [group.option=value ...] [seed=0]

Trains a host, embeds a watermark, attacks it, tabulates bit error rate and
utility. What is done is kept below results/ and not done again.

  python -m bench method=neuralmark attack=prune    one experiment
  python -m bench -m method=uchida,neuralmark       a sweep: all combinations
  python -m bench method=uchida --cfg job           the whole configuration
  python -m bench.layers model=vit_tiny             weights for a mark
  python -m bench.check method=mine                 what a plug-in must keep
  python -m bench.report                            tables, figures of all runs
  python -m bench.claims                            verdicts on papers' claims

  --help GROUP        its choices, a line each; all: of every group
  --help GROUP=NAME   the options of a choice, with their values
"""
WIDE = 80


def help_text(argv: Sequence[str] = ()) -> str:
    """What `--help` with these words says. Raises ConfigError for a group or a choice that there is not."""
    folders, words = placed(argv)
    asked = [word for word in words if not word.startswith("-")]
    if not asked:
        return "\n".join([HEAD, *(_short(group, folders) for group in GROUPS), *_single()])
    out: list[str] = []
    for word in [*GROUPS, "options"] if asked == ["all"] else asked:
        group, equals, name = word.partition("=")
        if group not in (*GROUPS, "options"):
            raise ConfigError(f"--help {word}: no such group; {near(word, [*GROUPS, 'options', 'all'])}")
        if equals and name not in (names := options(group, folders)):
            raise ConfigError(f"--help {word}: no such {group}; {near(name, names)}")
        if equals:
            lines = files(group, folders)[name].read_text(encoding="utf-8").rstrip().splitlines()
            out += [part for line in lines for part in _fitting(line)]
        else:
            out += _single() if group == "options" else _choices(group, folders)
    return "\n".join(out)


def _fitting(line: str) -> list[str]:
    """A line of a yaml, its comment in as many lines as a screen makes of it."""
    code, sign, comment = line.partition("# ")
    if len(line) <= WIDE or not sign:
        return [line]
    first, *rest = wrap(comment, WIDE - len(code) - 2)
    return [f"{code}# {first}", *(f"{' ' * len(code)}# {part}" for part in rest)]


def _short(group: str, folders: Sequence[Path]) -> str:
    """A group on one line: its first choices, and how many there are."""
    names = [name for name in options(group, folders) if "/" not in name]
    line, rest = f"{group + '=':12}", len(names)
    for name in names:
        tail = f", ... {len(names)} in all"
        if len(line) + len(name) + 2 + (len(tail) if rest > 1 else 0) > WIDE:
            return f"{line}{tail}"
        line, rest = f"{line}{', ' if rest < len(names) else ''}{name}", rest - 1
    return line


def _choices(group: str, folders: Sequence[Path]) -> list[str]:
    """A group's choices, a line each, from the first comment of each file."""
    out = [f"{group}="]
    for name, path in files(group, folders).items():
        out.append(f"  {name:{31 if '/' in name else 18}} {first_comment(path)}")
    return out


def _single() -> list[str]:
    """The options that belong to no group, from the comments of the main file."""
    out, node = ["options"], ""
    for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines():
        node = line[:-1] if re.match(r"\w+:$", line) else node
        if found := re.match(r"( *)(\w+): +(\S+) +# (.*)", line):
            name = f"{node}.{found[2]}" if found[1] else found[2]
            out.append(f"  {f'{name}={found[3]}':28} {found[4]}")
    return out


def first_comment(path: Path) -> str:
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in lines if not line.startswith("@package")), "")
