"""Finding which channel is which in a module whose channels were permuted and rescaled.

An attacker may permute a network's channels and rescale them without changing what it computes. A module in parallel
to a stage, W [D, C, K, K] with D = C, then becomes W'[i, j] = r_i c_j W[p(i), p(j)] with one permutation p, because its
input and its output are the same channels. Its kernels' directions survive: the diagonal ones, W[d, d], stay together
under any p, which is where the search begins; all pilots, W[d, d .. d + PILOTS - 1], then refine it. Bits are never
written into pilots, so the search learns nothing about them: given it, a random key still matches each bit with
probability 1/2, and the binomial null holds (Tang et al. match on all components, whose null is another).
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

PILOTS = 8


def pilots(shape: torch.Size) -> Tensor:
    """Flat positions in [D, C, B] of the pilots' carriers, int32."""
    d, c = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    pilot = ((c - d) % shape[1] < PILOTS)[:, :, None].expand(shape)
    return pilot.reshape(-1).nonzero()[:, 0].to(torch.int32)


def payload(shape: torch.Size) -> Tensor:
    """Flat positions in [D, C, B] that are no pilot's, int32."""
    free = torch.ones(shape.numel(), dtype=torch.bool)
    free[pilots(shape).long()] = False
    return free.nonzero()[:, 0].to(torch.int32)


def aligned(found: Tensor, reference: Tensor) -> Tensor:
    """Carriers `found` [C, C, B] in the order and with the signs of the key's `reference`, their scales evened out."""
    with torch.no_grad():
        order = matched(found, reference)
        rows, columns = gains(found[order][:, order], reference)
    return found[order][:, order] / rows[:, None, None] / columns[None, :, None]


def matched(found: Tensor, reference: Tensor) -> Tensor:
    """Permutation `order` [C]: channel order[d] of the suspect is the key's channel d."""
    found, reference = functional.normalize(found, dim=2), functional.normalize(reference, dim=2)
    count = len(found)
    same = torch.arange(count, device=found.device)
    start = _assign(torch.einsum("ib,db->id", found[same, same], reference[same, same]).abs())
    best, score = same, _score(found, reference, same)
    for order in (same, start):
        for _ in range(10):
            new = _assign(_similarity(found, reference, order))
            if torch.equal(new, order):
                break
            order = new
        if (reached := _score(found, reference, order)) > score:
            best, score = order, reached
    return best


def _assign(similarity: Tensor) -> Tensor:
    """[D, D] of suspect by key -> the suspect's channel for each of the key's, of the greatest sum."""
    # A ruined network may hold what is no number: it matches nothing.
    suspect, key = linear_sum_assignment(similarity.double().nan_to_num(0, 0, 0).cpu().numpy(), maximize=True)
    order = torch.empty(len(key), dtype=torch.long)
    order[torch.from_numpy(key)] = torch.from_numpy(suspect)
    return order.to(similarity.device)


def _similarity(found: Tensor, reference: Tensor, order: Tensor) -> Tensor:
    """[suspect, key]: |cosine| of pilots as filter and as input channel, all others being where `order` says."""
    d = torch.arange(len(order), device=order.device)
    total = torch.zeros(len(order), len(order), device=found.device)
    for j in range(min(PILOTS, len(order))):
        after, before = (d + j) % len(order), (d - j) % len(order)
        total += torch.einsum("idb,db->id", found[:, order[after]], reference[d, after]).abs()
        total += torch.einsum("dib,db->id", found[order[before]], reference[before, d]).abs()
    return total


def _score(found: Tensor, reference: Tensor, order: Tensor) -> float:
    return float(_similarity(found, reference, order)[order, torch.arange(len(order), device=order.device)].sum())


def gains(found: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(rows [D], columns [C]): the sizes of aligned carriers [D, C, B], with the signs in which pilots differ."""
    size, least = found.norm(dim=2), torch.finfo(found.dtype).tiny
    rows, columns = torch.ones(len(size), device=found.device), torch.ones(len(size), device=found.device)
    for _ in range(5):
        rows = (size / columns).square().mean(1).sqrt().clamp_min(least)
        columns = (size / rows[:, None]).square().mean(0).sqrt().clamp_min(least)
    c = torch.arange(len(size), device=found.device)
    pilot = (c[None, :] - c[:, None]) % len(c) < PILOTS
    agree = ((found * reference).sum(2) * pilot) / rows[:, None] / columns
    # Signs of filters and of channels: those of the best approximation by one of each, up to a common one.
    u, _, v = torch.linalg.svd(agree.double().nan_to_num(0, 0, 0).cpu())
    up, sign = (torch.where(x < 0, -1.0, 1.0).to(found) for x in (u[:, 0], v[0]))
    return rows * up, columns * sign
