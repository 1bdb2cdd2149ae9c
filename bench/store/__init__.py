"""What is on disk: runs, stages, claims. `load` reads all rows of a results folder; the rest is in the modules."""

from bench.store.runs import load

__all__ = ["load"]
