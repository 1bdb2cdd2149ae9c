"""Model cards: of every host and mark, what one needs to make it again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from bench.metrics import missing
from bench.report.content import command
from bench.report.words import number, unit

MADE_BY = (
    "seed",
    "task",
    "host",
    "method",
    "model",
    "data",
    "train",
    "verify",
)  # nodes of a configuration that make a mark
FACTS = ("python", "torch", "timm", "numpy", "device", "threads")


def cards(runs: Iterable[dict[str, Any]]) -> str:
    """A card (details) for each mark: by configuration and seed, from whichever run tells most of it."""
    known: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = run["config"]
        at = json.dumps([config.get(name) for name in MADE_BY], sort_keys=True)
        if at not in known or run["rows"][0]["attack"] == "none":
            known[at] = run
    order = sorted(known.values(), key=lambda run: (*map(str, _place(run)), run["rows"][0]["seed"]))
    return "".join(_card(run) for run in order)


def _place(run: dict[str, Any]) -> tuple[str, str, str]:
    row = run["rows"][0]
    return row["model"], row["data"], row["method"]


def _card(run: dict[str, Any]) -> str:
    rows = {row["knob"]: row for row in reversed(run["rows"]) if row["status"] == "ok"}
    host, victim, config, env = rows.get("host"), rows.get("none"), run["config"], run["env"] or {}
    model, data, method = _place(run)
    facts = {"network, data": f"{model} on {data}", "seed": str(run["rows"][0]["seed"])}
    for name, row in (("host", host), ("victim", victim)):
        if row and not missing(row["utility"]):
            facts[name] = f"{row['utility_name']} {row['utility']:.{unit(row['utility_name'])[1] + 1}f}"
            facts[name] += "" if missing(row["ber"]) else f", BER {row['ber']:.3f} of {row['n_bits']} bits"
            facts[name] += "" if missing(row["log10_p"]) else f", log10 p {row['log10_p']:.1f}"
            facts[name] += f"; {row['seconds']:,.0f} s" if not missing(row["seconds"]) else ""
    if tried := (run["controls"] or {}).get("random_keys"):
        facts["random keys"] = f"{run['controls']['false_positives']} of {tried:,} verified"
    facts["made with"] = ", ".join(f"{name} {env[name]}" for name in FACTS if not missing(env.get(name)))
    facts["commit"] = str(run["rows"][0]["commit"] or "not recorded")
    told = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items() if v)
    words = [w for w in run.get("command") or [] if not w.startswith(("attack", "data@attack"))]
    again = command([*words, "attack=none"] if run.get("command") else None, [run["rows"][0]["seed"]])
    whole = json.dumps({name: config.get(name) for name in MADE_BY}, indent=1, ensure_ascii=False)
    alpha = number(config["verify"]["alpha"])
    title = f"{method}, {model} on {data}, seed {run['rows'][0]['seed']}"
    return (
        f'<details class="card"><summary>{escape(title)}</summary><dl class="facts">{told}</dl>'
        f'<p>To make it again (verified at alpha {alpha}):</p><pre class="command">{escape(again)}</pre>'
        f"<pre>{escape(whole)}</pre></details>\n"
    )
