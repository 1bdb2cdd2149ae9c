"""Random keys that take long: what is said after the first few."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import controls
from bench.progress import unseen
from bench.types import Key, Method


class Slow(Method):
    """A method whose keys take so many seconds each, on a clock of its own."""

    def __init__(self, seconds: float):
        self.seconds, self.now = seconds, 0.0

    def keygen(self, host, rng, task) -> Key:
        self.now += self.seconds
        return Key(torch.from_numpy(rng.integers(0, 2, 64).astype(bool)), {}, ())

    def extract(self, model, key, task):
        return torch.full((64,), 0.25)


@pytest.mark.parametrize(
    ("seconds", "count", "expected"),
    [
        (2.3, 1000, ["control: 2.3 s a key, about 38 min for all; verify.keys=100 tries fewer"]),
        (0.01, 1000, []),
        (2.3, 20, []),  # soon over
        (60, 9, []),  # over before there is an estimate
    ],
)
def test_slow_keys_are_told_after_ten(monkeypatch, seconds, count, expected):
    method, said = Slow(seconds), []
    monkeypatch.setattr(controls, "time", SimpleNamespace(monotonic=lambda: method.now))
    x = SimpleNamespace(
        **{"method": method, "method_name": "slow", "verify": SimpleNamespace(keys=count), "task": None},
        **{"say": said.append, "progress": unseen, "rng": lambda *roles: np.random.default_rng(0)},
    )
    tried = controls.tried(x, None, None, None)
    assert len(tried["ber"]) == count
    assert said[1:] == expected
