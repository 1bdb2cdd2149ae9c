"""What a run's suspects give, for people: numbers beside the verdicts (bench.report.readings has their tables), and a
figure.

Pictures (`Gallery`), for methods whose `access` is `outputs` on a task of pictures, which have `read` and `readings`
beside `extract`; what host, victim and suspects make of a task's `examples` (`Sketch`); what networks of text write
(`Writings`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.data.pixels import seen
from bench.experiment import Experiment
from bench.metrics import similarity, suspect
from bench.models.anatomy import receptive_field
from bench.types import Key, Snapshot

AMPLIFIED = 10
MOST = 4  # suspects in a Sketch
SHOWN = 3  # prompts
COLUMNS = ("input", "unmarked output", "its output", f"difference x{AMPLIFIED}", "read from it")


@dataclass
class Gallery:
    """A run's suspects. The first that is added is the unmarked host, with whose outputs all others' are compared.

    `inputs` and `unmarked`, its outputs for them: [N, 3, H, W] in 0..255 on the CPU.
    """

    inputs: Tensor | None = None
    unmarked: Tensor | None = None
    numbers: list[dict[str, Any]] = field(default_factory=list)
    panels: list[tuple[str, list[list[Tensor]]]] = field(default_factory=list)

    def add(self, x: Experiment, snapshot: Snapshot, key: Key, utility: float) -> None:
        """One more suspect: what is read from its outputs, how near they are to the host's, two pictures of it."""
        model, knob, strength = snapshot.model, snapshot.knob, snapshot.strength
        answers = x.task.answers(model)
        maps, outputs = x.method.read(answers, key), answers.cpu()
        if self.unmarked is None:
            self.inputs, self.unmarked = x.task.answers(identity(x)).cpu(), outputs
        pair = self.unmarked.to(torch.uint8), outputs.to(torch.uint8)
        alike = {f"{name}_to_unmarked": similarity(*pair, name) for name in ("psnr", "ssim")}
        numbers = {**alike, **x.method.readings(maps, key), "sees": receptive_field(model, x.task.example())}
        self.numbers.append({"knob": knob, "strength": strength, **numbers})
        difference = seen(127.5 + AMPLIFIED * (outputs - self.unmarked))
        columns = self.inputs, self.unmarked, outputs, difference, seen(255 * maps)
        # Of most contrast and of median contrast: a plain sky shows little of what a network does.
        order = self.unmarked.std((1, 2, 3)).argsort()
        rows = [[column[i] for column in columns] for i in (order[-1], order[len(order) // 2])]
        self.panels.append((suspect(knob, strength), rows))

    def draw(self, stem: Path, title: str) -> Path:
        """The figure stem.png: two rows a suspect, COLUMNS, its numbers at the left."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from bench.report.figures.static import save
        from bench.report.style import STYLE

        with mpl.rc_context({**STYLE, "axes.grid": False}):
            count = 2 * len(self.panels)
            fig = Figure(figsize=(8.6, 1.15 * count + 0.7), layout="constrained")
            axes = fig.subplots(count, len(COLUMNS), squeeze=False)
            for ax, name in zip(axes[0], COLUMNS, strict=True):
                ax.set_title(name, fontsize=8)
            for i, ((name, rows), numbers) in enumerate(zip(self.panels, self.numbers, strict=True)):
                for j, row in enumerate(rows):
                    for ax, picture in zip(axes[2 * i + j], row, strict=True):
                        pixels = picture.permute(1, 2, 0).to(torch.uint8).numpy().squeeze()
                        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
                        ax.set_xticks([])
                        ax.set_yticks([])
                said = [
                    name,
                    f"{numbers['psnr_to_unmarked']:.1f} dB to unmarked",
                    f"presence {numbers['presence']:.2f}",
                ]
                said += [f"BER each {numbers['ber_each']:.3f}"] if "ber_each" in numbers else []
                axes[2 * i][0].set_ylabel("\n".join(said), y=0.0, rotation=0, ha="right", va="center", fontsize=7)
            fig.suptitle(title, fontsize=10, fontweight="bold")
            return save(fig, stem, ["png"])[0]


@dataclass
class Sketch:
    """A run's figure where the task has `examples`: those, and what host, victim and suspects make of them."""

    numbers: None = None  # a table of a Gallery's
    columns: list[tuple[str, list[Any]]] = field(default_factory=list)
    before: int = 0  # columns up to the victim's
    victim: nn.Module | None = None

    def add(self, x: Experiment, snapshot: Snapshot, key: Key | None, utility: float) -> None:
        """One more suspect, unless it is the victim as it was, or another task's network by now."""
        if snapshot.moved or snapshot.model is self.victim:
            return
        if not self.columns:
            self.columns += x.task.examples().items()
        said, shown = x.task.shows(snapshot.model)
        name = suspect(snapshot.knob, snapshot.strength)
        if snapshot.knob == "none":
            name, self.victim, self.before = "victim", snapshot.model, len(self.columns) + 1
        self.columns.append((f"{name}\n{x.task.utility_name} {utility:.1f}\n{said}", shown))

    def draw(self, stem: Path, title: str) -> Path:
        """The figure stem.png: a column each; of many suspects MOST, evenly over the attack, with the last one."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from bench.report.figures.static import save
        from bench.report.style import STYLE

        rest = self.columns[self.before :]
        few = [rest[-1 - i * len(rest) // MOST] for i in range(MOST)][::-1] if len(rest) > MOST else rest
        columns = [*self.columns[: self.before], *few]
        count = len(columns[0][1])
        with mpl.rc_context({**STYLE, "axes.grid": False}):
            fig = Figure(figsize=(1.5 * len(columns), 1.3 * count + 1.0), layout="constrained")
            axes = fig.subplots(count, len(columns), squeeze=False)
            for j, (name, shown) in enumerate(columns):
                axes[0][j].set_title(name, fontsize=7)
                for ax, item in zip(axes[:, j], shown, strict=True):
                    _place(ax, item)
            fig.suptitle(title, fontsize=9, fontweight="bold")
            return save(fig, stem, ["png"])[0]


def _place(ax: Any, item: Any) -> None:
    """A picture [3, H, W] in 0..255, or a text."""
    ax.set_xticks([])
    ax.set_yticks([])
    if isinstance(item, str):
        ax.text(0.02, 0.98, item, fontsize=5, va="top", wrap=True, transform=ax.transAxes)
    else:
        ax.imshow(item.permute(1, 2, 0).to(torch.uint8).numpy(), interpolation="nearest")


@dataclass
class Writings:
    """What host, victim and suspects write after the same prompts, the likeliest token each time. The first of
    `numbers` has the prompts and, as `written`, the references."""

    numbers: list[dict[str, Any]] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)

    def add(self, x: Experiment, snapshot: Snapshot, key: Key | None, utility: float) -> None:
        """One more suspect: what it writes, and its perplexity per token."""
        if snapshot.moved:
            return
        if not self.numbers:
            self.asked, given = map(list, zip(*x.task.questions(x.task.asks, SHOWN), strict=True))
            first = {"prompt": [*map(x.task.text, self.asked)], "written": [texts[0] for texts in given]}
            self.numbers.append({"knob": "reference", "strength": None, **first})
        written = [x.task.text(tokens) for tokens in x.task.written(snapshot.model, self.asked, x.task.config.written)]
        numbers = {"perplexity": x.task.perplexity(snapshot.model), "written": written}
        self.numbers.append({"knob": snapshot.knob, "strength": snapshot.strength, **numbers})

    def draw(self, stem: Path, title: str) -> Path:
        """The figure stem.png: prompt, reference, and what host, victim and the last suspect write."""
        from textwrap import wrap

        import matplotlib as mpl
        from matplotlib.figure import Figure

        from bench.report.figures.static import save
        from bench.report.readings import spoken
        from bench.report.style import STYLE

        parts = [
            [(wrap(name, 18), wrap(texts[i], 88) or ["(nothing)"]) for name, texts in spoken(self.numbers)]
            for i in range(len(self.asked))
        ]
        lines = [max(len(name), len(text)) + 0.6 for part in parts for name, text in part]
        height = sum(lines) + len(parts) + 3
        with mpl.rc_context(STYLE):
            fig = Figure(figsize=(8.6, 0.17 * height))
            fig.text(0.5, 1 - 0.5 / height, title, ha="center", va="top", fontsize=10, fontweight="bold")
            at = 3.0
            for part in parts:
                for name, text in part:
                    y, bold = 1 - at / height, "bold" if name == ["prompt"] else "normal"
                    fig.text(0.17, y, "\n".join(name), ha="right", va="top", fontsize=8, color="dimgrey")
                    body = "\n".join(text).replace("$", r"\$")
                    fig.text(0.19, y, body, va="top", fontsize=8, family="monospace", fontweight=bold)
                    at += max(len(name), len(text)) + 0.6
                at += 1
            return save(fig, stem, ["png"])[0]


def of(x: Experiment, pictures: bool) -> Gallery | Sketch | Writings | None:
    """What keeps a run's suspects for people, if anything does. `pictures`: the mark is read from some."""
    if pictures:
        return Gallery()
    if x.method.marks and x.task.gives == "text":
        return Writings()
    return Sketch() if x.task.examples() else None


def path(x: Experiment) -> Path:
    """Where a run's figure is, without the ending."""
    return x.results / "figures" / f"{x.method_name}_{x.attack_name}_{x.run_id}"


def identity(x: Experiment) -> nn.Module:
    """A network that gives what it takes: an untrained restorer."""
    return x.task.build(replace(x.model, checkpoint=None), 0)
