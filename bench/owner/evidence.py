"""What a file of weights, or a network, says of a key: bits, p, the method's checks, and a sentence to quote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import metrics
from bench.errors import ConfigError, UserError, bounded
from bench.models import align, branches, checkpoints, skeleton
from bench.owner import keyfile
from bench.owner.keyfile import Owned
from bench.types import Key, Method

ALPHA = 1e-9  # as verify.alpha


@dataclass(frozen=True)
class Evidence:
    """What was read. True where the mark is detected.

    ber in [0, 1]; log10_p: of at least so many matches under the null; detected: at `alpha`, shared among the readings,
    and every check of the method holds. checks: in words, with their outcome. how: by position, or after channels were
    put back, inverted where all bits are the other way round. claim: whether p is at most the method's boundary, or
    2^-80, as for a claimant who may have tried keys. bound: whether the method ties message to key. weakest: the least
    soft value of a right bit. said: what of the input was and was not read. suspect, key_sha256: what was read by what.
    """

    ber: float
    log10_p: float
    detected: bool
    checks: dict[str, bool]
    n_bits: int
    alpha: float
    method: str = ""
    how: str = "by position"
    claim: bool = False
    bar: float = metrics.CLAIM
    bound: bool = False
    tails: int = 1
    weakest: float = 0.0
    said: tuple[str, ...] = field(default_factory=tuple)
    suspect: str = ""
    key_sha256: str = ""

    def __bool__(self) -> bool:
        return self.detected

    @property
    def matches(self) -> int:
        """Bits that are as the key says, or where all are inverted those that are not."""
        error = 1 - self.ber if "inverted" in self.how else self.ber
        return metrics.matches(error, self.n_bits)

    @property
    def sentence(self) -> str:
        """One sentence to quote, with its null."""
        sides = (
            "at least as many would match, or be the other way round,"
            if self.tails == 2
            else "at least as many would match"
        )
        back = ", after its channels were put in the order of the owner's copy" if "aligned" in self.how else ""
        failed = [name for name, ok in self.checks.items() if not ok]
        end = f"; the method's own check fails ({failed[0]})" if failed else ""
        verdict = "The mark is present" if self.detected else "No mark is established"
        return (
            f"{verdict}: of the {self.n_bits} bits of the key, {self.matches} "
            f"{'are inverted in' if 'inverted' in self.how else 'match'} what method {self.method} reads from "
            f"{self.suspect}{back}, while for a key drawn without regard to that network {sides} with a probability of "
            f"{number(self.log10_p)}, where {self.alpha:g} was asked for{end}."
        ).replace("  ", " ")

    @property
    def caution(self) -> str:
        """What the number does not say."""
        if "aligned" in self.how:
            return (
                "who may choose key and copy afterwards reads anything from any network: what was read after channels "
                "were put back counts only with a commitment dated before (--commitment)"
            )
        if not self.bound:
            return (
                "nothing in this key binds it: whoever holds the file can make another that reads as well; the "
                "probability counts only with a commitment dated before (--commitment)"
            )
        return "" if self.claim else f"p is above {self.bar:.2g}: only the key's date tells it from a search among keys"


def number(log10: float) -> str:
    """10^log10 in digits, of any size: 1.6e-77."""
    if log10 > -4:
        return f"{10**log10:.2g}"
    whole = math.floor(log10)
    return f"{10 ** (log10 - whole):.1f}e{whole}"


def enough(method: Method, key: Key, alpha: float = ALPHA) -> None:
    """Raises ConfigError for a message that is too short to be detected, even where all of its bits match."""
    least = metrics.log10_p(0.0, key.n_bits, 2 if method.signs else 1, method.chance(key))
    if not metrics.is_detected(least, alpha, 2):
        raise ConfigError(
            f"{key.n_bits} bits verify at no alpha below {number(least + math.log10(2))}, and {alpha:g} is asked for: "
            "more of them (n_bits)"
        )


def verify(
    suspect: str | Path | nn.Module | Mapping[str, Tensor],
    key: str | Path | Owned,
    reference: str | Path | nn.Module | Mapping[str, Tensor] | None = None,
    *,
    alpha: float = ALPHA,
    under: str | None = None,
    prefix: str | None = None,
) -> Evidence:
    """Whether a key's mark is in a file of weights, a network or a state dict.

    reference: the marked network as it was saved with the key, by which channels that were permuted are put back before
    a second reading; alpha is then shared. under: the entry of a pickled dictionary that holds the weights; prefix:
    what its names begin with. Raises UserError (code 2) for input that cannot be read: nothing is known of it then.
    """
    bounded("alpha", alpha, 0, 1, "()")
    owned = key if isinstance(key, Owned) else keyfile.read(key)
    name = str(suspect) if isinstance(suspect, (str, Path)) else "the network"
    if owned.method.access != "weights":
        return _asked(owned, suspect, name, alpha)
    found = _weights(suspect, owned, under, prefix)
    with unusable(f"the key does not fit {name}"), torch.no_grad():
        net, said, none = _read(owned, found.tensors)
        if none and (reference is None or not owned.traced):
            raise UserError(f"{name}: holds none of the weights that the key names: {'; '.join(said)}", 2)
        readings = 1 if reference is None else 2
        made = judged(owned, net, alpha, readings)
    made = replace(made, suspect=name, said=(*found.said, *said))
    if reference is None or made.detected:
        return made
    return _aligned(owned, found.tensors, reference, made)


def judged(owned: Owned, net: nn.Module, alpha: float, readings: int = 1, task: Any = None) -> Evidence:
    """What a key reads from a network."""
    method, key = owned.method, owned.key
    soft = method.extract(net, key, task).cpu()
    error, log10_p = method.evidence(soft, key)
    checks = owned.check()
    seen, bar = metrics.is_detected(log10_p, alpha, readings), min(alpha, method.boundary or metrics.CLAIM)
    inverted = method.signs and error > 0.5 and seen
    return Evidence(
        ber=error,
        log10_p=log10_p,
        detected=seen and all(checks.values()),
        checks=checks,
        n_bits=key.n_bits,
        alpha=alpha,
        method=owned.name,
        how="by position, inverted" if inverted else "by position",
        claim=metrics.is_detected(log10_p, bar, readings) and all(checks.values()),
        bar=bar,
        bound=owned.bound,
        tails=2 if method.signs else 1,
        weakest=metrics.weakest(soft.nan_to_num(0.5), key.message),
        key_sha256=owned.sha256,
    )


@contextmanager
def unusable(what: str) -> Iterator[None]:
    """Whatever somebody else's numbers make a computation stumble over, in one line, exit status 2."""
    try:
        yield
    except ConfigError as error:
        raise UserError(f"{what}: {error}", 2) from error
    except (
        RuntimeError,
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as e:
        line = " ".join(str(e).split())[:200]
        raise UserError(f"{what} ({type(e).__name__}: {line})", 2) from e


def _weights(
    given: str | Path | nn.Module | Mapping[str, Tensor], owned: Owned, under: str | None, prefix: str | None
) -> checkpoints.Weights:
    """Weights by the key's names, as far as they are there."""
    if isinstance(given, nn.Module):
        given = given.state_dict()
    found = checkpoints.of(given) if isinstance(given, Mapping) else checkpoints.read(given, under)
    if prefix is not None:
        chosen = {n.removeprefix(prefix): t for n, t in found.tensors.items() if n.startswith(prefix)}
        if not chosen:
            raise UserError(f"{found.files[0]}: no tensor's name begins with {prefix!r}", 2)
        found = replace(found, tensors=chosen).noting(f"only tensors that begin with {prefix} are read")
    return checkpoints.unwrapped(checkpoints.folded(found), owned.key.where)


def _stored(owned: Owned, name: str, tensor: Tensor) -> Tensor:
    """A marked weight as (out, in, ...)."""
    square = tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]
    turned = name in owned.turned and tensor.dim() == 2 and (square or tuple(tensor.shape) != owned.shapes[name])
    return tensor.t() if turned else tensor


def _read(owned: Owned, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, list[str], bool]:
    """A network of the weights that the key names, what of them could not be read, and whether none could. What is
    missing has no numbers, and its bits are half an error each."""
    held, said, got = {}, [], []
    for name, shape in owned.shapes.items():
        names = [name, *owned.tied.get(name, [])]
        own = next((n for n in names if n in tensors), None)
        tensor = None if own is None else _stored(owned, name, tensors[own])
        if tensor is not None and tuple(tensor.shape) == shape:
            if not bool(tensor.isfinite().all()):
                said.append(f"{name}: {int((~tensor.isfinite()).sum()):,} of {tensor.numel():,} values are no numbers")
            got.append(f"{name} {tuple(shape)} {str(tensor.dtype).removeprefix('torch.')}")
            held[name] = tensor.contiguous()
            continue
        why = "is not in the file" if tensor is None else f"is {tuple(tensor.shape)} there, not {shape}"
        said.append(f"{name} {why}: not read")
        held[name] = torch.full(shape, math.nan) if math.prod(shape) <= 1 << 31 else torch.full((1,), math.nan)
    rest = len(tensors) - len(got)
    more = f" and {len(got) - 3} more" if len(got) > 3 else ""
    read = [f"read: {', '.join(got[:3])}{more}; {rest} other tensors are not looked at"] if got else []
    inside = {n: t for n, t in tensors.items() if n.startswith(f"{branches.NAME}.") and n not in held}
    return skeleton.skeleton({**held, **inside}, list(held)), [*read, *said], not got


def _aligned(owned: Owned, tensors: Mapping[str, Tensor], reference: Any, made: Evidence) -> Evidence:
    """The evidence after the suspect's channels were put back, if that says more."""
    held = _weights(reference, owned, None, None)
    if owned.digest is None or not owned.traced:
        why = "the key does not say what may be exchanged in the network: Watermark.save(..., model, example)"
        return replace(made, said=(*made.said, f"not aligned: {why}"))
    if keyfile.content(keyfile.complete(held.tensors, owned.tied)) != owned.digest:
        what = reference if isinstance(reference, (str, Path)) else "the reference"
        raise UserError(
            f"{what}: not the copy that this key was saved with, and who may choose another reads what they like", 2
        )
    with unusable("the suspect cannot be put in the reference's order"), torch.no_grad():
        found = keyfile.opened(owned, held.tensors)
        ready = align.referring(found, align.hidden(owned.method, found.model, owned.key))
        floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        other = skeleton.skeleton(keyfile.complete(floats, owned.tied), owned.carriers, owned.turned)
        try:
            put = align.aligned(ready, other)
        except align.OtherShapes as error:
            return replace(made, said=(*made.said, f"not aligned: {error}"))
        again = judged(owned, put.model, made.alpha, 2)
    words = f"aligned: {put.moved} families of channels moved, correlation of what is not read {put.score:.2f}"
    if again.log10_p >= made.log10_p:
        return replace(made, said=(*made.said, f"not better {words}"))
    how = "aligned, inverted" if "inverted" in again.how else "aligned"
    return replace(again, how=how, suspect=made.suspect, said=(*made.said, words))


class _Shown:
    """What extraction from a network asks of a task: of what size inputs are."""

    def __init__(self, owned: Owned):
        self.images = owned.key.secret["images"]

    def example(self, count: int = 1) -> Tensor:
        return self.images[:count]


def _asked(owned: Owned, suspect: Any, name: str, alpha: float) -> Evidence:
    """Evidence of a method that asks the network itself."""
    if not isinstance(suspect, nn.Module):
        raise UserError(
            f"method {owned.name} reads what a network gives, not its weights: name one, "
            "python -m bench.verify FILE --key KEY model=NAME data=NAME",
            2,
        )
    if "images" not in owned.key.secret:
        raise UserError(f"method {owned.name} reads pictures that a network gives: python -m bench measures that", 2)
    training = suspect.training
    try:
        with unusable("the key does not fit the network"):
            made = judged(owned, suspect.eval(), alpha, 1, _Shown(owned))
    finally:
        suspect.train(training)
    return replace(made, suspect=name, how="by what the network gives")
