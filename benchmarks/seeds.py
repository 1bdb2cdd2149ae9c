"""Whether training the seeds of a cell in one go pays: a step of S networks stacked with torch.func.stack_module_state
and vmap, against S steps of one network each (the same batches, optimiser and layout). Above 1: stacking is faster.

    python benchmarks/seeds.py [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

from collections.abc import Callable

import compare
import loop
import subject
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional

from bench.experiment import Experiment


def one_by_one(x: Experiment, networks: list[nn.Module], batches: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """A step of each network."""
    optimizers = [x.train.optimizer_for(list(net.parameters())) for net in networks]

    def step() -> None:
        for net, optimizer, (images, labels) in zip(networks, optimizers, batches, strict=True):
            with x.train.autocast(x.device):
                loss = functional.cross_entropy(net(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return step


def stacked(x: Experiment, networks: list[nn.Module], batches: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """One step of all networks; each has its own batch and, stacked too, its own running statistics."""
    parameters, buffers = stack_module_state(networks)
    optimizer = x.train.optimizer_for(list(parameters.values()))
    images, labels = (torch.stack(part) for part in zip(*batches, strict=True))
    network = networks[0]

    def loss(own: dict, state: dict, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(network, (own, state), (images,)), labels)

    batched = torch.vmap(loss, randomness="different")

    def step() -> None:
        with x.train.autocast(x.device):
            total = batched(parameters, buffers, images, labels).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return step


def compared(name: str, overrides: tuple[str, ...] | None, count: int, device: str, rounds: int) -> compare.Ratio:
    """The line of one network and number of seeds."""
    x = subject.experiment(64 * count, *(overrides or ()), f"device={device}", "train.epochs=1")

    def made() -> list[nn.Module]:
        nets = [subject.small_cnn(x) if overrides is None else x.task.build(x.model, 0) for _ in range(count)]
        return [net.train() for net in nets]

    images, labels, index = x.task.tensors("owner")
    batches = [(images[part], labels[part]) for part in index.split(64)]
    steps = {"one": one_by_one(x, made(), batches), "stacked": stacked(x, made(), batches)}
    kind = x.device.type
    found = compare.alternate({k: lambda step=step: compare.seconds(step, kind) for k, step in steps.items()}, rounds)
    return compare.compared(f"{count} seeds, {name}", "one by one", found["one"], found["stacked"])


def main() -> None:
    args = compare.arguments(__doc__, ("--device", {"default": "auto"}), ("--only", {"default": ""}))
    rounds = args.rounds or (3 if args.quick else 7)
    chosen = [(name, overrides) for name, overrides, _, _ in loop.MODELS if args.only in name]
    lines = [compared(*one, count, args.device, rounds) for one in chosen for count in (2, 4)]
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
