"""What the house test asks of a tree of code and of its Markdown, as functions of a folder: each gives the complaints.

Imports are read, not executed: those at the top, those inside functions and those for type checkers alone count alike.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CODE = ("bench", "methods", "attacks", "hydra_plugins")
MODULES = {"run", "experiment", "stages", "threat", "judge", "controls", "gallery", "train", "types", "errors", "spec"}
MODULES |= {"metrics", "progress", "machine", "precision", "layers", "plan", "embed", "verify", "runs", "cache"}
MODULES |= {"__main__"}
PACKAGES = {"cli", "data", "models", "tasks", "store", "loggers", "report", "claims", "studies", "site", "check"}
PACKAGES |= {"owner"}
# A module imports rooms of lower levels, and its own room: a package or a module at the top of bench, a plug-in folder.
LEVELS = (
    ("errors", "metrics", "progress"),
    ("spec", "machine", "types"),
    ("store", "loggers"),
    ("data", "models", "report"),
    ("train",),
    ("tasks", "methods", "attacks", "precision"),
    ("experiment",),
    ("stages", "threat", "gallery"),
    ("controls", "judge"),
    ("run",),
    ("cli",),
    ("owner", "runs"),
    ("studies", "check", "layers", "plan", "embed", "verify", "cache", "__main__", "hydra_plugins"),
    ("claims", "site"),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
PLUGINS = ("methods", "attacks")
LONGEST = 400
LONGER = {"bench/types.py": 520}  # every word that plug-ins and harness share, in one file


class Import(NamedTuple):
    """That `module` imports `target`, both dotted, by `file`:`line`."""

    module: str
    target: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.module} imports {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of CODE; a package's own code has the package's name."""
    found = {}
    for path in sorted(p for folder in CODE for p in (root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> list[Import]:
    """Every import of one module of CODE by another; `from bench import x` is one of bench.x where that is a module."""
    known = modules(root)
    found = []
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _named(node, module, path.name == "__init__.py"):
                while name and name not in known:
                    name = name.rpartition(".")[0]
                if name not in ("", module):
                    found.append(Import(module, name, path.relative_to(root).as_posix(), node.lineno))
    return list(dict.fromkeys(found))  # of several names in a line once


def _named(node: ast.AST, module: str, package: bool) -> Iterator[str]:
    """What a statement imports, dotted, as deep as it is written."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            above = parts[: len(parts) - node.level + package]
            base = ".".join([*above, *filter(None, [base])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def circles(found: Iterable[Import]) -> list[str]:
    """Modules that import each other, by a shortest way round for each: `a -> b -> a`, with the lines that do it."""
    edges: dict[str, dict[str, Import]] = {}
    for one in found:
        edges.setdefault(one.module, {}).setdefault(one.target, one)
    said, seen = [], set()
    for start in sorted(edges):
        if start not in seen and (way := _round(start, edges)):
            seen |= {one.module for one in way}
            names = " -> ".join([start, *(one.target for one in way)])
            said.append(f"{names} ({', '.join(f'{one.file}:{one.line}' for one in way)})")
    return said


def _round(start: str, edges: dict[str, dict[str, Import]]) -> list[Import]:
    """The shortest way from `start` back to it, or nothing."""
    ways: dict[str, list[Import]] = {start: []}
    queue = [start]
    for module in queue:
        for target, one in edges.get(module, {}).items():
            if target == start:
                return [*ways[module], one]
            if target not in ways:
                ways[target] = [*ways[module], one]
                queue.append(target)
    return []


def room(module: str) -> str:
    """bench.store.runs: store; bench.run: run; methods.uchida: methods; bench itself: bench."""
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == "bench" and rest else first


def against(found: list[Import]) -> list[str]:
    """Imports that go up or sideways. bench/__init__.py lies below all while it imports nothing, else above all."""
    face = len(LEVELS) if any(one.module == "bench" for one in found) else -1
    level = {"bench": face, **LEVEL}
    said = []
    for one in found:
        here, there = room(one.module), room(one.target)
        unknown = [name for name in (here, there) if name not in level]
        if unknown:
            said.append(f"{one}: {unknown[0]} is at no level")
        elif here in PLUGINS and there == here:
            helper = one.target.split(".")[1:2]
            if not helper or not helper[0].startswith("_"):
                said.append(f"{one}: of its own folder a plug-in imports helpers that begin with an underscore")
        elif there in PLUGINS and one.module.split(".")[0] == "bench":
            said.append(f"{one}: bench imports no plug-in")
        elif here != there and level[there] >= level[here]:
            said.append(f"{one}: {there} is not below {here}")
    return said


def names(root: Path) -> list[str]:
    """What lies at the top of bench/ and should not, or the other way round."""
    files = {p.stem for p in (root / "bench").glob("*.py")} - {"__init__"}
    folders = {p.parent.name for p in (root / "bench").glob("*/*.py")}
    more = [f"bench/{name}.py: not a module of the house" for name in sorted(files - MODULES)]
    more += [f"bench/{name}/: not a package of the house" for name in sorted(folders - PACKAGES)]
    less = [f"bench/{name}.py is missing" for name in sorted(MODULES - files)]
    return more + less + [f"bench/{name}/ is missing" for name in sorted(PACKAGES - folders)]


def plugins(root: Path) -> list[str]:
    """Plug-ins without a configuration and configurations without one; a helper's name begins with an underscore."""
    said = []
    for folder in PLUGINS:
        code = {p.stem for p in (root / folder).glob("[!_]*.py")}
        conf = {p.stem for p in (root / "conf" / folder[:-1]).glob("*.yaml")}
        said += [f"{folder}/{name}.py has no conf/{folder[:-1]}/{name}.yaml" for name in sorted(code - conf)]
        said += [f"conf/{folder[:-1]}/{name}.yaml has no {folder}/{name}.py" for name in sorted(conf - code)]
    return said


def long(root: Path, folders: Iterable[str] = (*CODE, "tests", "benchmarks"), most: int = LONGEST) -> list[str]:
    """Modules of more than `most` lines."""
    counted = {p: p.read_bytes().count(b"\n") for folder in folders for p in sorted((root / folder).rglob("*.py"))}
    named = {p.relative_to(root).as_posix(): n for p, n in counted.items()}
    return [f"{name}: {n} lines" for name, n in named.items() if n > LONGER.get(name, most)]
