"""The pages of the site, each as HTML: a function of what was read from run files, made of the report's own parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.report.content import Content, assemble
from bench.report.figures import shown
from bench.report.page.markup import document, grid, slug, table, td
from bench.report.page.page import anchored, charts, facts, provenance
from bench.report.threats import HOLDS
from bench.report.words import CELL, harmless
from bench.site import docs, leaderboard
from bench.site.cards import cards

TITLE = "Watermark benchmark"
MADE = "Made by <code>python -m bench.site</code> from run files alone."
SWEEP = "python -m bench experiment=reference method=mine --config-dir my/conf launcher=joblib threads=1"
SIDES = {"method": "methods", "attack": "attacks"}


@dataclass(frozen=True)
class Results:
    """One folder of runs: its name, title and first paragraph (of its README), and what they say."""

    name: str
    folder: Path
    title: str
    about: str
    content: Content

    def named(self, side: str) -> set[str]:
        """The methods or attacks of it."""
        return {run["rows"][0][side] for run in self.content.runs}


def names(results: Iterable[Results], side: str) -> list[str]:
    """Methods or attacks that have a page, in order; `none` is last among methods, and no attack.

    Raises UserError for one that no module can be called: it would be a file's name.
    """
    found = set().union(*(one.named(side) for one in results))
    if odd := sorted(name for name in found if not name.isidentifier()):
        raise UserError(f"a run file of {side} {harmless(odd[0])!r}: that is no name of a {side}; leave the file out")
    return sorted(found - {"none"}) + ["none"] * (side == "method" and "none" in found)


def _page(title: str, about: str, body: str, depth: int) -> str:
    up = "../" * depth
    links = {"index.html": "Leaderboard", "index.html#methods": "Methods", "index.html#attacks": "Attacks"}
    links |= {"index.html#results": "Results", "add.html": "Add a row"}
    return document(title, about, {up + to: name for to, name in links.items()}, body, MADE, f"{up}assets")


def _section(name: str, title: str, text: str) -> str:
    return f'<section id="{slug(name)}"><h2>{escape(title)}</h2>{text}</section>\n' if text else ""


def _link(href: str, text: str) -> str:
    return f'<a href="{escape(href)}">{escape(text)}</a>'


def _target(results: Iterable[Results], side: str, name: str) -> Any:
    runs = (run for one in results for run in one.content.runs)
    return next((run["config"][side].get("_target_") for run in runs if run["rows"][0][side] == name), "")


def index(results: list[Results]) -> str:
    """The first page: the leaderboards, then every method, attack and folder of results."""
    about = {name: docs.of(_target(results, "method", name)) for name in names(results, "method")}
    body = f'<p class="legend">{escape(leaderboard.RULE)}</p>'
    body += "".join(_leaderboard(one, about) for one in results)
    rows = []
    for name in names(results, "method"):
        of = about[name]
        where = ", ".join(one.name for one in results if name in one.named("method"))
        rows.append([td(name, href=f"methods/{name}.html"), td(of.paper or "not of this repository", kind="text")])
        rows[-1] += [td(of.year or "–"), _out(of.code, "code"), _out(_arxiv(of), "arXiv"), td(where)]
    body += _section("methods", "Methods", table(["method", "paper", "year", "code", "arXiv", "results"], rows))
    rows = []
    for name in names(results, "attack"):
        of = docs.of(_target(results, "attack", name))
        where = ", ".join(one.name for one in results if name in one.named("attack"))
        rows.append([td(name, href=f"attacks/{name}.html"), td(of.paper, kind="text"), td(where)])
    body += _section("attacks", "Attacks", table(["attack", "what it does", "results"], rows))
    items = "".join(
        f"<li>{_link(f'results/{one.name}.html', one.title)}: {len(one.content.runs):,} runs. {escape(one.about)}</li>"
        for one in results
    )
    body += _section("results", "Results", f"<ul>{items}</ul>")
    runs = sum(len(one.content.runs) for one in results)
    said = (
        "Which method would still prove that a stolen network is its owner's, and what would it cost to take that away?"
    )
    head = f"<p>{said} {runs:,} runs; every figure leads to the command that makes it again.</p>"
    return _page(TITLE, head, body, 0)


def _arxiv(of: docs.Docs) -> str:
    return f"https://arxiv.org/abs/{of.arxiv}" if of.arxiv else ""


def _out(address: str, text: str) -> str:
    return f'<td class="link">{_link(address, text)}</td>' if address else td("–")


def _leaderboard(one: Results, about: Mapping[str, docs.Docs]) -> str:
    lines = leaderboard.lines(one.content)
    text = ""
    for place in dict.fromkeys((line.model, line.data) for line in lines):
        here = [line for line in lines if (line.model, line.data) == place]
        if len({line.label for line in here}) < 2:
            continue  # one method is no comparison: its page has it
        kinds = [name for name in HOLDS if any(line.cells[name][0] != "–" for line in here)]
        head = ["place", "method", "removed by", *(f"removal: {name}" for name in kinds), "forged claims"]
        head += ["fidelity", "embedding, s", "seeds", "year", "code"]
        rows = []
        for line in here:
            to = f"methods/{line.method}.html#{slug(one.name)}"
            row = [td(line.place or "–", line.place.rstrip("=")), td(line.label, href=to)]
            row += [td(f"{line.removed} of {line.tried}", line.removed)]
            row += [td(text, None, f"cell {kind}" if kind else "", to) for text, kind in map(line.cells.get, kinds)]
            row += [td(line.claims[0], None, f"cell {line.claims[1]}" if line.claims[1] else "", to)]
            row += [td(line.fidelity), td(line.seconds), td(str(line.seeds))]
            of = about.get(line.method, docs.NOTHING)
            rows.append([*row, td(of.year or "–"), _out(of.code, "code")])
        text += f"<h3>{escape(f'{place[0]} on {place[1]}')}</h3>{table(head, rows)}"
    if not text:
        return ""
    text += f"<p>{_link(f'results/{one.name}.html', 'Everything of these runs')}: {escape(one.about)}</p>"
    anchors = {
        key: f"methods/{key[0]}.html#{slug(one.name)}" for key in one.content.cells[CELL].itertuples(index=False)
    }
    text += charts(shown.threats(one.content), {tuple(key): to for key, to in anchors.items()}, True)
    return _section(f"board-{one.name}", one.title, text)


def _prose(paragraphs: Iterable[str]) -> str:
    """Docstrings as paragraphs; what is in backticks is code."""
    plain = (escape(" ".join(part.split())) for part in paragraphs)
    coded = (re.sub(r"`([^`]+)`", r"<code>\1</code>", text) for text in plain)
    return "".join(f"<p>{text}</p>" for text in coded)


def about(side: str, name: str, results: list[Results]) -> str:
    """The page of one method or attack: what it is, its options, and in each folder of results its rows and figures."""
    of = docs.of(_target(results, side, name))
    links = [_link(address, text) for address, text in ((of.code, "code"), (_arxiv(of), "arXiv")) if address]
    text = _prose(of.text) if of.text else "<p>Its code is not here: it came from outside this repository.</p>"
    rows = [[td(option), td(default), td(said, kind="text")] for option, default, said in docs.options(side, name)]
    body = _section("about", "What it is", text + (f"<p>{', '.join(links)}</p>" if links else ""))
    if rows:
        body += _section("options", "Options", table(["option", "default", "meaning"], rows))
    for one in results:
        runs = [run for run in one.content.runs if run["rows"][0][side] == name]
        if runs:
            body += _rows(one, side, runs)
    return _page(f"{name}: {side}", "", body, 1)


def _rows(one: Results, side: str, runs: list[dict[str, Any]]) -> str:
    content = assemble(runs)
    ids = anchored(content.rows)
    anchors = {key: f"{slug(one.name)}-{at}" for key, at in ids.items()}
    text = f"<p>{escape(one.about)} {_link(f'../results/{one.name}.html', 'All of these runs')}.</p>"
    text += facts(content, 0)
    for name in ("threats", "summary", "controls") if side == "method" else ("summary",):
        if name in content.parts:
            (made,), legend = content.parts[name]
            text += f"{grid(made, anchors)}<p class='legend'>{escape(legend)}</p>"
    text += charts(shown.attacks(content), anchors, True)
    if side == "method":
        text += f"<h3>Model cards</h3>{cards(runs)}"
    text += f"<h3>Provenance</h3>{provenance(content, [one.folder], anchors, slug(one.name))}"
    return _section(one.name, one.title, text)


def add() -> str:
    """How a row comes here: what to send, what is checked."""
    steps = f"""
<p>A row is a run file: <code>results/runs/&lt;method&gt;/&lt;attack&gt;/&lt;run id&gt;.json</code>, written by
<code>python -m bench</code>. Nothing on these pages is typed by hand.</p>
<ol>
<li>Write the method or attack: a module and a yaml (<code>docs/extending.md</code>), and let
<code>python -m bench.check method=mine</code> tell what the contract finds.</li>
<li>Commit it: a run names its commit, and one with changes besides is marked <code>dirty</code> and not taken.</li>
<li>Run the reference's sweep with it:<pre class="command">{escape(SWEEP)}</pre></li>
<li>Check the files:<pre class="command">python -m bench.site --check results/runs</pre>
It says of each file whether it is complete (every field; host, victim and controls; all points of the attack; the
recorded command composes to the recorded configuration and run id; a clean commit), and with <code>--again</code>
makes it again from nothing in a folder of its own and compares every row.</li>
<li>Send the files in a pull request, below <code>results/&lt;name&gt;/</code>,
with a README that names the command.</li>
</ol>
<p>Bit error rates, verdicts and utility must come out again: bit for bit with the same versions and threads, and
otherwise within what the seeds differ by.</p>
"""
    return _page("Add a row", "", steps, 0)
