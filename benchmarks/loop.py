"""Images per second of bench.train.Fit against (a) the floor: a bare loop over tensors on the device, with the same
model, batch, augmentation, layout, precision and optimiser, and (b) the loader the field uses: a torchvision data set
of PIL images, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize and a DataLoader of 4 workers, feeding the bare
loop in NCHW and, on a CPU, float32. Above 1: ours is faster.

    python benchmarks/loop.py [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import compare
import subject
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms

from bench.data.images import augment, batches
from bench.experiment import Experiment
from bench.precision import hardware
from bench.train import Fit, last_layout

BATCH = 64
HALF = f"train.precision={'bfloat16' if hardware() else 'float32'}"  # what `auto` is for a training that takes minutes
# Name, overrides (None: the small CNN), images of one timing, and what is asked against the field's loader.
MODELS = [
    ("4 convolutions, 0.1 M", None, 6400, ">= 2.5"),
    ("resnet10t", ("model=timm", "model.name=resnet10t"), 1280, ">= 1.2"),
    ("resnet18, ImageNet stem", ("model=resnet18",), 960, None),
    ("resnet18, small stem", ("model=resnet18", "model.stem=small"), 192, ">= 1.1"),
    ("vit_tiny", ("model=vit_tiny",), 384, None),
    ("cifarnet", ("model=cifarnet", HALF), 2560, ">= 2.5"),
    ("resnet18_mid", ("model=resnet18_mid", HALF), 640, ">= 1.5"),
]


def field_loader(images: Tensor, labels: Tensor, mean: list[float], std: list[float], pinned: bool) -> Iterable:
    """The usual pipeline over the same images. The workers stay between epochs, which the usual code forgets."""
    data = torchvision.datasets.CIFAR10.__new__(torchvision.datasets.CIFAR10)
    data.data, data.targets = images.permute(0, 2, 3, 1).cpu().numpy(), labels.tolist()
    scale = transforms.Normalize([m / 255 for m in mean], [s / 255 for s in std])
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), scale]
    data.transform, data.target_transform = transforms.Compose(steps), None
    options = {"num_workers": 4, "persistent_workers": True, "drop_last": True, "pin_memory": pinned}
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, **options)


def bare(x: Experiment, model: nn.Module, source: Iterable) -> None:
    """One epoch as a tutorial writes it, from a fresh optimiser."""
    optimizer = x.train.optimizer_for(list(model.parameters()))
    model.train()
    for images, labels in source:
        images, labels = images.to(x.device, non_blocking=True), labels.to(x.device, non_blocking=True)
        with x.train.autocast(x.device):
            loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def preloaded(images: Tensor, labels: Tensor, index: Tensor) -> Iterable:
    rng = torch.Generator(images.device)
    order = index[torch.randperm(len(index), device=index.device)]
    for part in order[: len(order) // BATCH * BATCH].split(BATCH):
        yield augment(images[part], 4, True, rng), labels[part]


def compared(name: str, overrides: tuple[str, ...] | None, count: int, goal: str | None, args) -> list[compare.Ratio]:
    """The lines of one network."""
    more = (f"device={args.device}", f"train.batch_size={BATCH}", "train.epochs=1")
    x = subject.experiment(count, *(overrides or ()), *more)
    images, labels, index = x.task.tensors("owner")
    facts = x.task.signature
    loader = field_loader(images[index], labels[index], facts.mean, facts.std, x.device.type == "cuda")

    def fresh() -> nn.Module:
        return subject.small_cnn(x) if overrides is None else x.task.build(x.model, 0)

    ours, floor, field = fresh(), fresh(), fresh().to(memory_format=torch.contiguous_format)
    if last_layout(floor, x.train, x.device):
        floor.to(memory_format=torch.channels_last)
    plain = replace(x, train=replace(x.train, precision="float32")) if x.device.type == "cpu" else x
    field._forward_pre_hooks.clear()  # its images come normalised
    fit, owner = Fit(x.train, 0), x.task.view("owner")

    def timed(function: Callable[[], object]) -> Callable[[], float]:
        return lambda: count / compare.seconds(function, x.device.type)

    cases = {
        "fit": timed(lambda: fit(ours, owner)),
        "bare": timed(lambda: bare(x, floor, preloaded(images, labels, index))),
        "field": timed(lambda: bare(plain, field, loader)),
    }
    if overrides is None:  # loading does not depend on the network
        cases["our loading"] = timed(lambda: sum(1 for _ in batches(images, labels, index, BATCH, 0, 4, True)))
        cases["its loading"] = timed(lambda: sum(1 for _ in loader))
    found = compare.alternate(cases, args.rounds)
    rate = " ".join(f"{case} {sorted(v)[len(v) // 2]:,.0f}" for case, v in found.items())
    print(f"{name}: images/s: {rate}", flush=True)
    lines = [
        compare.compared(f"fit, {name}", "bare loop", found["fit"], found["bare"], ">= 0.97"),
        compare.compared(f"fit, {name}", "PIL DataLoader", found["fit"], found["field"], goal),
    ]
    if overrides is None:
        lines.append(
            compare.compared("loading alone", "PIL DataLoader", found["our loading"], found["its loading"], ">= 7")
        )
    return lines


def main() -> None:
    args = compare.arguments(__doc__, ("--device", {"default": "auto"}), ("--only", {"default": ""}))
    args.rounds = args.rounds or (3 if args.quick else 7)
    lines: list[compare.Ratio] = []
    for name, overrides, count, goal in MODELS:
        if args.only in name:
            lines += compared(name, overrides, count // (3 if args.quick else 1), goal, args)
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
