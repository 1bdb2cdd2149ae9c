"""The protocol's second control: keys that nobody embedded, tried on the victim. Those that verify are false positives.

The first control, the host under the owner's key, is a row of every run (bench.run.attack_rows).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import cache, metrics, spec
from bench.experiment import Experiment
from bench.types import Key, UserError

VERSION = 3  # 2: keys drawn for another network; 3: p-values by the method's own null
CHECKED = 3  # keys that are read a second time, by the method's own extract


def random_keys(
    x: Experiment, victim: Callable[[], tuple[nn.Module, Key]], other: Callable[[], nn.Module]
) -> dict[str, Any] | None:
    """`verify.keys` keys, message and secret drawn by strangers for a network of their own, tried on the marked one.

    `victim` gives the marked network and its key, `other` the strangers' network: same architecture, other weights.
    Returns {random_keys, false_positives, mean_ber, least_log10_p}: how many were tried and verified, what they read.
    None for a method without a mark, or without keys to draw, or no keys.
    Verification is the judge's, with every check the method prescribes.
    Measured once for each mark, whatever attacks follow; alpha is applied afterwards.
    """
    if not x.method.marks or not x.verify.keys:
        return None
    identity = {**x.mark_identity, "keys": x.verify.keys, "control": VERSION}
    tried = cache.cached(x.cache, "control", identity, lambda _: _tried(x, *victim(), other()), x.say)
    if not tried["ber"]:
        return None
    passed = [metrics.is_detected(p, x.verify.alpha) for p in tried["log10_p"]]
    hits = sum(ok and accepted for ok, accepted in zip(passed, tried["accepts"], strict=True))
    found = {"random_keys": len(passed), "false_positives": hits}
    return found | {"mean_ber": float(np.mean(tried["ber"])), "least_log10_p": min(tried["log10_p"])}


def _tried(x: Experiment, model: nn.Module, own: Key, other: nn.Module) -> dict[str, Any]:
    """BER, p-value and acceptance of every key. Raises UserError where `trials` reads other bits than `extract`."""
    x.say(f"control: {x.verify.keys:,} random keys on {spec.kind(x.method)}'s mark")
    draws = np.random.default_rng(spec.derive(x.seed, "judge", "keys"))
    errors, p_values, accepts = [], [], []
    with torch.inference_mode(), x.progress("random keys", x.verify.keys) as step:
        for key, soft in x.method.trials(model, own, other, draws, x.verify.keys, x.task):
            error, log10_p = x.method.evidence(soft, key)
            errors.append(error)
            p_values.append(log10_p)
            if len(errors) <= CHECKED and error != metrics.ber(x.method.extract(model, key, x.task), key.message):
                kind = spec.kind(x.method)
                raise UserError(f"{kind}.trials reads other bits than {kind}.extract: it controls another detector")
            accepts.append(bool(x.method.accepts(key)))
            step()
    return {"ber": errors, "log10_p": p_values, "accepts": accepts}
