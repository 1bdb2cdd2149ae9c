"""Which memory layout and precision make a training step quicker: channels_last and bfloat16 autocast against NCHW in
float32, for every preset of conf/model. Above 1: quicker. Of float32's layouts bench.models.anatomy chooses by a rule
that follows from this table; whether bfloat16 is worth it bench.precision measures for each network, at its own batch.

    python benchmarks/layout.py [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

from collections.abc import Callable

import compare
import subject
import torch
from torch.nn import functional

from bench.cli.usage import options
from bench.experiment import Experiment

# Presets that name no network of their own, and those of other tasks than classification.
OPEN = ("timm", "torchvision", "unet", "dncnn", "dncnn8", "resnet_ir", "resnet_ir4", "smp", "torchvision_segmentation")
OPEN += ("deeplabv3_resnet10t", "deeplabv3_mobilenetv3", "deeplabv3_resnet50", "unet_tiny")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def stepper(x: Experiment, layout: torch.memory_format, half: bool, batch: int, steps: int) -> Callable[[], float]:
    """Seconds of some training steps of one variant."""
    net = x.task.build(x.model, 0).to(memory_format=layout).train()
    optimizer = x.train.optimizer_for(list(net.parameters()))
    images, labels, index = x.task.tensors("owner")
    images, labels = images[index[:batch]], labels[index[:batch]]

    def run() -> None:
        for _ in range(steps):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                loss = functional.cross_entropy(net(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return lambda: compare.seconds(run, x.device.type)


def main() -> None:
    args = compare.arguments(__doc__, ("--device", {"default": "auto"}), ("--only", {"default": ""}))
    rounds = args.rounds or (2 if args.quick else 5)
    batch, steps = (16, 1) if args.quick else (64, 2)
    lines = []
    for name in options("model"):
        if args.only not in name or name in OPEN:
            continue
        x = subject.experiment(64, f"model={name}", f"device={args.device}", "method=none")
        cases = {
            f"{layout}{', bfloat16' if half else ''}": stepper(x, LAYOUTS[layout], half, batch, steps)
            for half in (False, True)
            for layout in LAYOUTS
        }
        found = compare.alternate(cases, rounds)
        new = [compare.compared(f"{c}, {name}", "NCHW", found["NCHW"], found[c]) for c in cases if c != "NCHW"]
        print(name, " ".join(f"{line.case.removesuffix(name)}{line.ratio:.2f}" for line in new), flush=True)
        lines += new
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
