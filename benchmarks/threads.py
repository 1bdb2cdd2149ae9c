"""How long OpenMP's threads should spin while they wait: images/s of one training on all cores, and of two at once, for
several GOMP_SPINCOUNT (0: not at all; unset, libgomp spins 300,000 times, 3 ms). bench/__init__.py sets 10,000.

    python benchmarks/threads.py [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import subprocess
import sys

import compare

SPINS = ("0", "1000", "10000", "100000", "300000")


def start(spins: str, seconds: float) -> subprocess.Popen:
    env = {**os.environ, "GOMP_SPINCOUNT": spins, "SECONDS_EACH": str(seconds)}
    return subprocess.Popen([sys.executable, __file__, "--child"], env=env, stdout=subprocess.PIPE, text=True)


def rate(spins: str, jobs: int, seconds: float) -> float:
    """Images/s of `jobs` trainings together."""
    running = [start(spins, seconds) for _ in range(jobs)]
    return sum(float(job.communicate()[0].split()[-1]) for job in running)


def child() -> None:
    """Train ResNet-18 for some seconds and print images/s."""
    import time

    import subject

    from bench.train import Fit

    x = subject.experiment(256, "model=resnet18", "method=none", "device=cpu", "train.epochs=1")
    model, fit, owner = x.task.build(x.model, 0), Fit(x.train, 0), x.task.view("owner")
    fit(model, owner)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(os.environ["SECONDS_EACH"]):
        fit(model, owner)
        count += 256
    print(count / (time.perf_counter() - started))


def main() -> None:
    args = compare.arguments(__doc__, ("--child", {"action": "store_true"}))
    if args.child:
        child()
        return
    rounds, seconds = args.rounds or (1 if args.quick else 5), 1 if args.quick else 4
    cases = {
        (spins, jobs): lambda s=spins, j=jobs: rate(s, j, seconds)
        for spins in (("0", "10000") if args.quick else SPINS)
        for jobs in (1, 2)
    }
    found = compare.alternate(cases, rounds)
    base = found["0", 1]
    lines = [
        compare.compared(f"{jobs} at once, {spins} spins" if jobs > 1 else f"alone, {spins} spins", "alone, 0", v, base)
        for (spins, jobs), v in found.items()
    ]
    compare.show(lines, compare.machine(), args.json)


if __name__ == "__main__":
    main()
