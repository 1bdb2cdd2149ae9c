"""Peak memory of bench.train.Fit against the bare loop of loop.py, each in a process of its own: resident memory of the
process on a CPU, allocated memory on a GPU.

    python benchmarks/memory.py [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

import subprocess
import sys

import compare

CASES = {"resnet18, ImageNet stem": ("model=resnet18",), "vit_tiny": ("model=vit_tiny",)}
COUNT = 8192


def peak(which: str, device: str, overrides: tuple[str, ...]) -> float:
    """Peak MiB of a process that trains for some steps."""
    argv = [sys.executable, __file__, "--child", which, "--device", device, "--overrides", *overrides]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def child(which: str, device: str, overrides: list[str]) -> None:
    """Train one short epoch, in our loop or the bare one, and print the peak."""
    import itertools

    import loop
    import subject

    from bench import machine
    from bench.train import Fit

    x = subject.experiment(COUNT, *overrides, f"device={device}", "train.batch_size=64", "train.epochs=1")
    model = x.task.build(x.model, 0)
    images, labels, index = x.task.tensors("owner")
    index = index[: 64 * 12]
    machine.reset_peak(x.device)
    if which == "fit":
        x.task.index["owner"] = index.cpu()
        Fit(x.train, 0)(model, x.task.view("owner"))
    else:
        loop.bare(x, model, itertools.islice(loop.preloaded(images, labels, index), 12))
    print(machine.peak_mb(x.device))


def main() -> None:
    args = compare.arguments(
        __doc__,
        ("--device", {"default": "auto"}),
        ("--child", {"choices": ("fit", "bare")}),
        ("--overrides", {"nargs": "*", "default": []}),
    )
    if args.child:
        child(args.child, args.device, args.overrides)
        return
    rounds = args.rounds or (1 if args.quick else 5)
    lines = []
    for name, overrides in CASES.items():
        cases = {which: lambda w=which, o=overrides: peak(w, args.device, o) for which in ("fit", "bare")}
        found = compare.alternate(cases, rounds)
        print(
            f"{name}: peak MiB: {', '.join(f'{k} {sorted(v)[len(v) // 2]:,.0f}' for k, v in found.items())}", flush=True
        )
        lines.append(compare.compared(f"fit, {name}", "bare loop", found["fit"], found["bare"], "<= 1.1"))
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
