"""Neural-network watermarking methods under attack: one harness, one protocol, one table.

The face for other people's code (docs/library.md), imported when it is asked for:

    bench.Watermark(method, model, ...)     a mark for a network that your own loop trains
    bench.verify(file, key, ...)            what a file of weights says of a key: Evidence
    bench.commit(path, key, file, ...)      hashes of both, to be published or time-stamped
    bench.run("method=uchida", ...)         the command line's words -> DataFrame of rows
    bench.load("results/runs")              all rows of its run files -> DataFrame
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = ["Evidence", "Watermark", "commit", "load", "run", "verify"]

# Before torch is imported. OpenMP's threads spin for 3 ms while they wait, which makes two jobs on the same cores ten
# times slower; not to spin at all costs a job that has the cores to itself a quarter. This is 0.1 ms.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_FACE = {"Watermark": "watermark", "Evidence": "evidence", "commit": "commitment", "load": "store"}
_CALLED = {"run": "rows", "verify": "evidence"}  # modules of these names, which are called as functions


class _Face(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Python sets bench.run when bench/run.py is imported, by whomever: it can be called from then on."""
        if name in _CALLED and type(value) is ModuleType:
            value.__class__ = type(name, (ModuleType,), {"__call__": staticmethod(_later(name))})
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _CALLED:
            return import_module(f"{__name__}.{name}")
        if name in _FACE:
            room = _FACE[name] if name == "load" else f"owner.{_FACE[name]}"
            return getattr(import_module(f"{__name__}.{room}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


def _later(name: str) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(f"{__name__}.owner.{_CALLED[name]}"), name)(*args, **kwargs)

    called.__doc__ = f"bench.owner.{_CALLED[name]}.{name}"
    return called


sys.modules[__name__].__class__ = _Face
