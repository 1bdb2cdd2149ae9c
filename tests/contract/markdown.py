"""What the house test asks of Markdown: links and anchors that resolve, commands that compose. Functions of texts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

INLINE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
TEXT = r"(?:[^\[\]\\]|\\.|\[(?:[^\[\]\\]|\\.)*\](?:\([^)]*\))?)*"  # of a link: an image, too
LINK = re.compile(  # inline, by reference, in HTML
    rf"(?<!\\)(?=\[{TEXT}\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\s*\))"
    r"|^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$|(?:href|src)=\"([^\"]+)\"",
    re.M,
)
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")


class Code(NamedTuple):
    """Code in a Markdown text: its text, the line it begins at, and the info string of a fence."""

    text: str
    line: int
    info: str = ""


def blocks(text: str) -> tuple[str, list[Code]]:
    """The text with fenced and indented blocks blanked, line for line, and the blocks."""
    lines = text.split("\n")
    kept, found = [*lines], []
    at, blank = 0, True
    while at < len(lines):
        start, at = at, at + 1
        if fence := re.match(r" {0,3}(`{3,}|~{3,})\s*([^`]*)$", lines[start]):
            end = re.compile(rf" {{0,3}}{fence[1][0]}{{{len(fence[1])},}}\s*$")
            while at < len(lines) and not end.match(lines[at]):
                at += 1
            found.append(Code("\n".join(lines[start + 1 : at]), start + 2, fence[2].strip()))
            at += 1
        elif blank and re.match(r"(?: {4}|\t)\s*\S", lines[start]):
            while at < len(lines) and re.match(r" {4}|\t|\s*$", lines[at]):
                at += 1
            found.append(Code("\n".join(lines[start:at]), start + 1))
        else:
            blank = not lines[start].strip()
            continue
        kept[start:at] = [""] * len(kept[start:at])
        blank = True
    return "\n".join(kept), found


def spans(text: str) -> tuple[str, list[Code]]:
    """A text without blocks, its inline code blanked, line for line, and that code, each in one line."""
    found = [Code(" ".join(m[2].split()), text.count("\n", 0, m.start()) + 1) for m in INLINE.finditer(text)]
    return INLINE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text), found


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown text as GitHub makes them of its headings, and those it sets itself."""
    kept, _ = blocks(text)
    found: set[str] = set(re.findall(r"<\w+ (?:id|name)=\"([^\"]+)\"", kept))
    counts: dict[str, int] = {}
    for title in re.findall(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", kept, re.M):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{counts[slug]}" if slug in counts else slug)
        counts[slug] = counts.get(slug, 0) + 1
    return found


def broken(path: Path, root: Path) -> list[str]:
    """Relative links of a Markdown file that lead nowhere: to no file below `root`, or to no heading."""
    prose, _ = spans(blocks(path.read_text(encoding="utf-8"))[0])
    said = []
    for match in LINK.finditer(prose):
        link = next(filter(None, match.groups()))
        where, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-zA-Z][\w+.-]*:|//", link):
            continue
        target = (path.parent / where).resolve() if where else path.resolve()
        place = f"{path.relative_to(root).as_posix()}:{prose.count(chr(10), 0, match.start()) + 1}: {link}"
        if not target.exists() or not target.is_relative_to(root.resolve()):
            said.append(f"{place}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            said.append(f"{place}: no such heading")
    return said


class Command(NamedTuple):
    """`python -m MODULE WORDS`, and the line of the text it stands in."""

    module: str
    words: list[str]
    line: int


def commands(text: str) -> list[Command]:
    """Every `python -m bench...` of a Markdown text, in blocks and in inline code; what a shell would make of it."""
    kept, found = blocks(text)
    out = []
    for code in [*found, *spans(kept)[1]]:
        lines = code.text.split("\n")
        for at in range(len(lines) - 1, 0, -1):  # a line that ends in a backslash goes on in the next
            if lines[at - 1].endswith("\\"):
                lines[at - 1], lines[at] = f"{lines[at - 1][:-1]} {lines[at]}", ""
        for at, line in enumerate(lines):
            out += [Command(*one, code.line + at) for one in _split(line)]
    return out


def _split(line: str) -> list[tuple[str, list[str]]]:
    """The commands `python -m bench...` of a shell line, each as its module and its words."""
    if "-m bench" not in line:
        return []
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>()")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError:  # a quote that never closes: text, no command
        words = line.split()
    parts: list[list[str]] = [[]]
    for word in words:
        if word.startswith("#"):
            break
        if set(word) <= set(";|&<>()"):
            parts.append([])
        else:
            parts[-1].append(word)
    found = []
    for part in parts:
        for at, (python, flag, module) in enumerate(zip(part, part[1:], part[2:], strict=False)):
            if re.fullmatch(r"(\S*/)?python3?", python) and flag == "-m" and re.fullmatch(r"bench(\.\S+)?", module):
                found.append((module, part[at + 3 :]))
    return found


def concrete(words: list[str], groups: tuple[str, ...]) -> list[str]:
    """The words without placeholders. A placeholder is a word with `...` in it, one all in capitals, and one that makes
    a choice in capitals (`method=NAME`) or ends its key in capitals (`model@attack.students.NAME=MODEL`). Capitals that
    are the value of an option are a value like any other (`data.path=DIR`)."""

    def stands_for_another(word: str) -> bool:
        key, _, value = word.partition("=")
        chooses = re.split(r"[@/]", key.lstrip("+~"))[0] in groups
        last = key.rpartition(".")[2]
        return (
            "..." in word
            or PLACEHOLDER.fullmatch(word) is not None
            or PLACEHOLDER.fullmatch(last) is not None
            or (chooses and any(PLACEHOLDER.fullmatch(piece) for piece in re.split(r"[,/]", value)))
        )

    return [word for word in words if not stands_for_another(word)]


def runnable(module: str, root: Path) -> bool:
    """Whether `python -m module` finds something to run below `root`."""
    path = root / Path(*module.split("."))
    files = [p for p in (path.with_suffix(".py"), path / "__main__.py") if p.is_file()]
    return any("__main__" in p.name or "__main__" in p.read_text(encoding="utf-8") for p in files)
