"""A reference that is chosen after the fact: an order of channels in which a network reads any key's message.

A judge who puts a suspect's channels back by whatever network a claimant shows can be made to read anything: 256
channels have 256! orders, 1,700 bits of freedom for a message of 256.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bench.models import exchange
from bench.models.symmetry import Trace, extent
from bench.types import Key, Method

ROUNDS = 60
SHARP = 0.3  # how much more a bit that is still wrong weighs


def chosen(model: nn.Module, method: Method, key: Key, example: Tensor) -> nn.Module | None:
    """A copy of `model` that computes the same, its channels in the order in which `key` reads most of its message.

    Logits are taken as linear in the one weight that they are read from: an order of its channels is an assignment, of
    the greatest sum of margins; bits that are still wrong weigh more in the next round. None where no set of channels
    of that weight may be exchanged.
    """
    found, name = copy.deepcopy(model), key.where[0]
    with exchange.evaluating(found):
        trace = Trace(found, "channels")
        trace.record(example)
        families = [(f, sets, term) for f, sets in exchange.families(trace).items() for n, term in f if n == name]
        if len(key.where) > 1 or not families:
            return None
        sign = torch.where(key.message, 1.0, -1.0)
        weight, best, least = found.get_parameter(name), copy.deepcopy(found), key.n_bits + 1
        for _ in range(ROUNDS):
            margin = sign.to(weight.device) * method.logits(found, key)
            if (wrong := int((margin <= 0).sum())) < least:
                best, least = copy.deepcopy(found), wrong
            if not wrong:
                break
            slope = _slope(method, found, key, sign)
            for places, sets, term in families:
                _reorder(trace, places, sets, (name, term), slope)
                slope = _slope(method, found, key, sign)
    return best


def _slope(method: Method, model: nn.Module, key: Key, sign: Tensor) -> Tensor:
    """Of the bits' margins, the wrong ones' above all, in the weight that they are read from."""
    margin = sign.to(model.get_parameter(key.where[0]).device) * method.logits(model, key)
    share = torch.sigmoid(-SHARP * margin / margin.abs().mean()).detach()
    return torch.autograd.grad((share * margin).sum(), [model.get_parameter(key.where[0])])[0]


@torch.no_grad()
def _reorder(trace: Trace, places: exchange.Places, sets: list[list[int]], at: tuple[str, int], slope: Tensor) -> None:
    """Put the channels of each set along an axis of a weight where the slope of the margins has most of them."""
    name, term = at
    found = trace.roots(trace.declared[name][term])
    if len(extent(found)) != 1:
        return
    (axis,) = extent(found)
    ids, weight, to = found.ravel(), trace.tensors[name], np.arange(len(trace.root))
    for roots in sets:
        spots = [np.flatnonzero(ids == root) for root in roots]
        if len({len(each) for each in spots}) > 1 or not len(spots[0]):
            continue
        index = torch.from_numpy(np.stack(spots))
        gain, held = (x.movedim(axis, 0)[index].flatten(1) for x in (slope, weight))
        slot, channel = linear_sum_assignment((gain @ held.T).double().cpu().numpy(), maximize=True)
        to[np.asarray(roots)[slot]] = np.asarray(roots)[channel]
    exchange.permute(trace, places, to)
