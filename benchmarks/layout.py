"""Which memory layout and precision make a training step quicker: channels_last and bfloat16 autocast against NCHW in
float32, for the networks of conf/model. Above 1: quicker. What bench.models.to_device and `train.precision=auto` choose
follows from this table.

    python benchmarks/layout.py [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

from collections.abc import Callable

import compare
import subject
import torch
from torch.nn import functional

from bench.experiment import Experiment

MODELS = (
    "alexnet",
    "coatnet_pico",
    "convnext_atto",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenetv3_large",
)
MODELS += ("regnetx_002", "resnet18", "resnet18+small", "resnet34", "swin_tiny", "vgg13_bn", "vit_tiny")
MODELS += ("wide_resnet50_2",)
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
    for name in MODELS:
        if args.only not in name:
            continue
        preset, _, stem = name.partition("+")
        more = (f"model.stem={stem}",) if stem else ()
        x = subject.experiment(64, f"model={preset}", *more, f"device={args.device}", "method=none")
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
