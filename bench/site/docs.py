"""What the code says of a method or an attack: its docstrings, its paper, its options. Read, not imported."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Docs:
    """text: docstrings of module and class, paragraphs; paper: the first sentence; year; code: address; arxiv:
    number; each empty where there is none."""

    text: tuple[str, ...]
    paper: str
    year: str
    code: str
    arxiv: str


NOTHING = Docs((), "", "", "", "")


def of(target: Any) -> Docs:
    """The docs of a `_target_` (methods.uchida.Uchida); NOTHING for a module that is not here."""
    module, _, name = str(target).rpartition(".")
    try:
        spec = find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (ImportError, AttributeError, ValueError, TypeError, OSError, SyntaxError):
        return NOTHING
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    docs = [cleandoc(doc) for node in [tree, *classes] if (doc := ast.get_docstring(node))]
    if not docs:
        return NOTHING
    paper = " ".join(docs[0].split("\n\n")[0].split())
    whole = " ".join(" ".join(docs).split())
    venue = re.findall(r"\b(?:19|20)\d\d\b(?!\.\d)", re.sub(r"github\.com\S+", "", paper))
    arxiv = re.search(r"\b\d{4}\.\d{5}\b", paper)
    year = venue[-1] if venue else f"20{arxiv[0][:2]}" if arxiv else ""
    code = re.search(r"github\.com/[\w.-]+/[\w-]+", whole)
    paper = re.sub(r"[;,]? ?code: github\.com/[\w.-]+/[\w-]+", "", paper).rstrip(".")
    paragraphs = tuple(part for doc in docs for part in doc.split("\n\n"))
    return Docs(paragraphs, paper, year, f"https://{code[0]}" if code else "", arxiv[0] if arxiv else "")


def options(group: str, name: str) -> list[tuple[str, str, str]]:
    """(option, default, what its comment says) of conf/<group>/<name>.yaml; nothing where there is no such file."""
    from bench.cli.compose import CONF  # and Hydra

    try:
        lines = (Path(CONF) / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = (re.match(r"([a-z]\w*): *(.*?)(?: +# *(.*))?$", line) for line in lines)
    return [(m[1], m[2], m[3] or "") for m in found if m and m[1] != "defaults"]
