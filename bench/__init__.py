"""Neural-network watermarking methods under attack: one harness, one protocol, one table."""

import os

__version__ = "0.1.0"

# Before torch is imported. OpenMP's threads spin for 3 ms while they wait, which makes two jobs on the same cores ten
# times slower; not to spin at all costs a job that has the cores to itself a quarter. This is 0.1 ms.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
