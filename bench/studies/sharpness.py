"""`python -m bench.studies.sharpness method=watermas ...`: what altering marked weights costs, and what altering
others does.

Loss and utility on the test set against the size of Gaussian noise on the weights that the bits are read from, and on
equally many random weights of the same layers; for a method that sharpens, beside the same method without sharpening.
Writes results/tables/sharpness-*.csv and results/figures/sharpness-*.png, .svg.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure

from bench import spec, stages
from bench.cli import usage
from bench.cli.compose import composed
from bench.cli.terminal import say
from bench.errors import UserError
from bench.experiment import Experiment, prepare
from bench.models.weights import like, pointed
from bench.report import style
from bench.report.figures.static import save
from bench.store.files import write_text

SIGMAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
DRAWS = 3


def show(overrides: list[str]) -> None:
    """Train what is not cached, measure, print, write."""
    usage.check(overrides)
    variants = {"": (cfg := composed([*overrides, "attack=none"]))}
    if cfg.method.get("sharpness"):
        variants["no sharpening; "] = composed([*overrides, "attack=none", "method.sharpness=0"])
    rows: list[dict[str, Any]] = []
    for name, variant in variants.items():
        x = prepare(variant, say)
        rows += [{"weights": name + weights, **row} for weights, points in measured(x).items() for row in points]
    frame = pd.DataFrame(rows)
    x = prepare(cfg)  # the files are named after the method as asked for, not after its baseline
    place = (x.method_name, x.model.title, x.data.name, spec.digest(x.mark_identity, 6))
    stem = "-".join(["sharpness", *place])
    table = frame.groupby(["weights", "sigma"], sort=False).mean(numeric_only=True).reset_index()
    print(f"{', '.join(place[:3])}, seed {x.seed}: mean of {DRAWS} draws of noise")
    print(table.drop(columns="draw").to_string(index=False, float_format="{:.3f}".format))
    paths = [x.results / "tables" / f"{stem}.csv"]
    write_text(paths[0], frame.to_csv(index=False))
    paths += drawn(table, x, x.results / "figures" / stem)
    print(*paths, sep="\n")


def measured(x: Experiment) -> dict[str, list[dict[str, float]]]:
    """Loss and utility of the victim for each size and draw of noise, on marked and on random weights."""
    if not x.method.marks:
        raise UserError(f"method={x.method_name} marks nothing", 2)
    model, key = stages.opened(x, stages.mark(x))
    if x.method.logits(model, key) is None:
        raise UserError("the key of this method points at no weights", 2)
    marked, draw = pointed(model, x.method, key), x.rng("sharpness")
    original = {name: model.get_parameter(name).detach().clone() for name in marked}
    out: dict[str, list[dict[str, float]]] = {"marked": [], "random": []}
    with torch.no_grad():
        for number in range(DRAWS):
            noise = {name: like(w, draw) * w.std() for name, w in original.items()}
            others = {}
            for name, mask in marked.items():
                free = (~mask).reshape(-1).nonzero()[:, 0]
                if len(free) < (count := int(mask.sum())):
                    raise UserError(f"the key points at most of {name}: no equally many others to compare with", 2)
                taken = torch.from_numpy(draw.permutation(len(free))[:count]).to(mask.device)
                others[name] = torch.zeros_like(mask).view(-1).index_fill(0, free[taken], True).view(mask.shape)
            for label, masks in (("marked", marked), ("random", others)):
                for sigma in SIGMAS:
                    for name, mask in masks.items():
                        model.get_parameter(name).copy_(original[name] + sigma * noise[name] * mask)
                    loss, count = torch.zeros((), device=x.device), 0
                    for batch in x.task.batches("test", 512):
                        size = len(x.task.inputs(batch))
                        loss, count = loss + x.task.loss(model, batch) * size, count + size
                    row = {"draw": number, "sigma": sigma, "loss": float(loss) / count}
                    out[label].append(row | {x.task.utility_name: x.task.utility(model)})
    return out


def drawn(table: pd.DataFrame, x: Experiment, stem: Path) -> list[Path]:
    """Two panels, loss and utility against the size of the noise; a line for each set of weights."""
    with matplotlib.rc_context(style.STYLE):
        fig = Figure(figsize=(7, 2.8), layout="constrained")
        for ax, column in zip(fig.subplots(1, 2), ("loss", x.task.utility_name), strict=True):
            for i, (weights, line) in enumerate(table.groupby("weights", sort=False)):
                look = {"color": style.OKABE_ITO[i], "marker": style.MARKERS[i], "linestyle": style.DASHES[i]}
                ax.plot(line["sigma"], line[column], label=weights, markersize=4, **look)
            ax.set(xlabel="noise / standard deviation of the layer", ylabel=column)
        handles, labels = ax.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        return save(fig, stem, ("png", "svg"))


if __name__ == "__main__":
    sys.exit(usage.answer(sys.argv[1:], lambda: __doc__, show))
