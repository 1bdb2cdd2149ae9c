"""`python -m bench.studies.alignment method=uchida [pairs=100] [references=5] [epochs=0] [looking=false] ...`

The null of reading after alignment: independent networks are put in the order of an owner's marked network
(bench.models.align) and read with the owner's key. If what the order goes by says nothing of the message, their bits
are coin tosses: the mean bit error rate is .5, its standard deviation over pairs .5 / sqrt(bits), and z, the mean's
distance in standard errors, is that of a normal variable. Bits of one reference are not quite independent (strangers
have the bias of one key in common), so take several.

pairs: of a reference and a stranger, shared out among the references, which are marks with seeds of their own (trained
once, cached). epochs: how long strangers are trained, on the attacker's split. looking: the control, an order that goes
by the marked weights as well. Further words are the configuration's: method, model, data, train, seed (the first).
Prints a table; writes results/tables/alignment-*.csv, a row for each pair.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from bench import spec, stages
from bench.cli import usage
from bench.cli.compose import composed
from bench.cli.terminal import say
from bench.errors import ConfigError, UserError
from bench.experiment import Experiment, prepare
from bench.metrics import is_detected
from bench.models import align
from bench.store.files import write_text
from bench.types import Key

OWN = {"pairs": 100, "references": 5, "epochs": 0, "looking": False}


def show(words: list[str]) -> None:
    """Train what is not cached, measure, print, write."""
    options, overrides = parsed(words)
    usage.check(overrides)
    first = prepare(composed([*overrides, "attack=none"]), say)
    rows = []
    for number in range(min(options["references"], options["pairs"])):
        x = prepare(composed([*overrides, "attack=none", f"seed={first.seed + number}"]), say)
        share = len(range(number, options["pairs"], options["references"]))
        rows += [{"reference": x.seed, **row} for row in pairs(x, share, options["epochs"], options["looking"])]
    frame = pd.DataFrame(rows)
    place = (first.method_name, first.model.title, first.data.name)
    print(", ".join(place), *(f"{name} {value}" for name, value in options.items()), sep="; ")
    print(pd.DataFrame(summaries(frame, first.verify.alpha)).to_string(index=False, float_format="{:.4g}".format))
    stem = "-".join(["alignment", *place, spec.digest({**first.mark_identity, **options}, 6)])
    path = first.results / "tables" / f"{stem}.csv"
    write_text(path, frame.to_csv(index=False))
    print(path)


def parsed(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """This command's own options, and the words that are the configuration's. Raises ConfigError."""
    options, rest = dict(OWN), []
    for word in words:
        name, _, value = word.partition("=")
        if name not in OWN:
            rest.append(word)
        elif name == "looking":
            if value not in ("true", "false"):
                raise ConfigError(f"looking={value}: must be true or false")
            options[name] = value == "true"
        elif not value.isdigit() or int(value) < (name != "epochs"):
            raise ConfigError(f"{word}: must be a whole number{'' if name == 'epochs' else ' above 0'}")
        else:
            options[name] = int(value)
    return options, rest


def pairs(x: Experiment, count: int, epochs: int = 0, looking: bool = False) -> Iterator[dict[str, Any]]:
    """`count` strangers read as they are and aligned with the run's marked network: {stranger, bits, unaligned, ber,
    log10_p, accepts, score, moved, converged}. Raises UserError for a method that marks no weights."""
    if not x.method.marks or x.method.access == "outputs":
        raise UserError(f"method={x.method_name} marks no weights", 2)
    model, key = stages.opened(x, stages.mark(x))
    hidden = {} if looking else align.hidden(x.method, model, key)
    reference = align.prepared(model, hidden, x.task.example())
    with x.progress("strangers", count) as step:
        for number in range(count):
            other = stranger(x, number, epochs)
            found = align.aligned(reference, other)
            error, log10_p = read(x, found.model, key)
            yield {
                "stranger": number,
                "bits": key.n_bits,
                "unaligned": read(x, other, key)[0],
                "ber": error,
                "log10_p": log10_p,
                "accepts": x.method.accepts(key),
                "score": found.score,
                "moved": found.moved,
                "converged": found.converged,
            }
            step()


def read(x: Experiment, model: nn.Module, key: Key) -> tuple[float, float]:
    return x.method.evidence(x.method.extract(model.to(x.device).eval(), key, x.task), key)


def stranger(x: Experiment, number: int, epochs: int) -> nn.Module:
    """A network of the run's architecture with a start, and a training, of its own."""
    seeds = [spec.derive(x.seed, "alignment", "stranger", number, what) for what in ("init", "extend", "fit")]
    model = x.method.extend(x.task.build(x.model, seeds[0]), x.task, seeds[1]).eval()
    if epochs:
        fit = replace(stages.owner_fit(x), seed=seeds[2]).using(epochs=epochs)
        model = fit(model, x.task.view("attacker"))
    return model


def summaries(frame: pd.DataFrame, alpha: float) -> Iterator[dict[str, Any]]:
    """A row for each reference and one for all: what was read, what coin tosses would give, how far they are apart."""
    groups = [*frame.groupby("reference"), ("all", frame)]
    for name, rows in groups if len(groups) > 2 else groups[-1:]:
        spread = 0.5 / np.sqrt(rows["bits"].to_numpy(float))
        error = np.sqrt((spread**2).mean() / len(rows))
        hits = [is_detected(p, alpha) and ok for p, ok in zip(rows["log10_p"], rows["accepts"], strict=True)]
        yield {
            "reference": name,
            "pairs": len(rows),
            "mean": rows["ber"].mean(),
            "sd": rows["ber"].std() if len(rows) > 1 else 0.0,
            "binomial sd": np.sqrt((spread**2).mean()),
            "z": (rows["ber"].mean() - 0.5) / error,
            "least": rows["ber"].min(),
            "detected": sum(hits),
            "unaligned": rows["unaligned"].mean(),
            "score": rows["score"].mean(),
            "unsettled": int((~rows["converged"]).sum()),
        }


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: __doc__, show))
