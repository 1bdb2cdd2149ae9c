"""Pagnotta, D. Hitaj, B. Hitaj, Perez-Cruz, Mancini: TATTOOED: a robust deep neural network watermarking scheme based
on spread-spectrum channel coding (ACSAC 2024, arXiv 2202.06091)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import ConfigError, among, within
from bench.types import Fit, Hooks, Key, Method, Task
from methods import _ldpc as ldpc
from methods import _positions as places

PREAMBLE = 200  # known symbols before the message


@dataclass(frozen=True)
class Tattooed(Method):
    """Coded bits, each a faint pattern of +-1 over the same many weights, added to a trained network.

    From the released code: bits pass a regular LDPC code, 200 known symbols go before them; symbol i adds gamma times
    +-1 times its spreading code, +-1 on each of a keyed share of the weights, and is read as y_i = code_i . W. The
    preamble gives the gain g = mean y_i p_i and the noise sigma = std y_i p_i; sum-product decodes log P(1)/P(0) =
    2 y g / sigma^2. Nothing is trained, the message is not told from the weights' own: what is read is their projection
    and the mark. (d_v, d_c) = (3, 12): such a code has rate 3/4 (its 96 k message bits become 384 k, it seems, but
    pyldpc makes 290 of 384 free); d_c 4 is the rate 1/4 that its lengths were meant for.

    Ours: gamma in standard deviations of all the weights together, where theirs is 0.0009 for every network (0.025 of
    the digits' ResNet-18); share of distinct positions in convolution and linear weights but the stem's and the head's,
    where theirs draws with replacement and takes every tensor called weight but the last, normalisation's as well; one
    word of the code for the whole message; the code is public, theirs is drawn by the key. Codes are Walsh functions
    times one keyed +-1 a position and one a symbol, as in a CDMA downlink: exactly orthogonal, where random ones
    disturb each other by gamma sqrt(symbols) a weight, and read by one transform, where theirs takes symbols x
    positions steps.

    binding (ours): `none`: positions and signs are tensors of the key. Theirs are three seeds of a generator, without
    the message; nearer to that is `hash`: they follow from a committed 32-byte seed, message and layers.
    Null: each symbol's sign is a fair coin of the key, and sum-product of a linear code commutes with its words, so
    that a stranger's message is uniform whatever the weights are: binomial, decoder and all. An attacker who turns the
    gain inverts every bit (words stay words where d_c is even), hence two tails.
    Secret `positions` [L], `code` [L] of +-1, `symbols` [200 + coded bits] of +-1.
    """

    signs = True
    tunable = True

    n_bits: int = within(1)
    gamma: float = within(0, ends="(]")
    share: float = within(0, 0.5, ends="(]")
    d_v: int = within(2)
    d_c: int = within(3)
    binding: str = among("none", "hash")
    layer: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_c <= self.d_v:
            raise ConfigError(f"method.d_c={self.d_c} must exceed method.d_v={self.d_v}: the rate is 1 - d_v / d_c")

    def again(self, factor: float) -> Tattooed:
        return replace(self, gamma=factor * self.gamma)

    @property
    def ldpc(self) -> ldpc.Code:
        return ldpc.regular(self.n_bits, self.d_v, self.d_c)

    @property
    def symbols(self) -> int:
        return PREAMBLE + self.ldpc.length

    @property
    def chips(self) -> int:
        """Length of a Walsh function: a power of two that holds the symbols."""
        return 1 << (self.symbols - 1).bit_length()

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message, positions and signs; ConfigError where the share is too small for the symbols."""
        return places.keygen(host, self.layer, rng, self.n_bits, self.binding, self._secret)

    def _secret(self, words: places.Words, total: int) -> dict[str, Tensor]:
        length = int(self.share * total) // self.chips * self.chips
        if length == 0:
            raise ConfigError(
                f"method.n_bits={self.n_bits} takes {self.symbols:,} symbols and so {self.chips:,} weights, but "
                f"method.share={self.share:g} of {total:,} are {int(self.share * total):,}: raise it or take fewer bits"
            )
        where, signs = map(torch.from_numpy, places.drawn(words, total, length, length + self.symbols))
        return {"positions": where, "code": signs[:length], "symbols": signs[length:]}

    @property
    def harness_only(self) -> str:
        return ""

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Add the mark to `host`, in place; `fit` is not used."""
        self.hooks(host, key, 0)
        return host.eval()

    @torch.no_grad()
    def hooks(self, host: nn.Module, key: Key, seed: int) -> Hooks:
        """The mark, added now; nothing is left to do."""
        flat, positions = places.flat(host, key.where), key.secret["positions"]
        signal = torch.zeros(self.chips)
        signal[: self.symbols] = self.coded(key) * key.secret["symbols"].cpu()
        chips = self.gamma * flat.std() * walsh(signal.to(flat.device))
        mark = (key.secret["code"].to(flat.device).view(-1, self.chips) * chips).reshape(-1)
        places.write(host, key.where, positions, flat[positions.to(flat.device)] + mark)
        return Hooks()

    def coded(self, key: Key) -> Tensor:
        """Preamble and code word of the key's message, [symbols] of +-1."""
        word = torch.from_numpy(self.ldpc.encode(key.message.cpu().numpy()))
        return torch.cat([torch.ones(PREAMBLE), torch.where(word, 1.0, -1.0)])

    def channel(self, model: nn.Module, key: Key) -> Tensor:
        """y, preamble and coded bits, in the weights' unit: gamma per symbol, [symbols]."""
        return self._read(places.flat(model, key.where), key)

    def _read(self, flat: Tensor, key: Key) -> Tensor:
        positions, code, symbols = (key.secret[k].to(flat.device) for k in ("positions", "code", "symbols"))
        chips = (flat[positions] * code).view(-1, self.chips).sum(0)
        return walsh(chips)[: self.symbols] * symbols / len(positions)

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        """The channel of the message's own bits, undecoded, [n]: `extract` is not their sign."""
        return self.channel(model, key)[PREAMBLE:][torch.from_numpy(self.ldpc.places(self.n_bits))]

    @torch.no_grad()
    def extract(self, model: nn.Module, key: Key, task: Task) -> Tensor:
        return self.decoded(self.channel(model, key))

    def decoded(self, channel: Tensor) -> Tensor:
        """Soft bits [n]; all 0.5 where there is nothing to read."""
        y = channel.detach().double().cpu().nan_to_num(0.0, 0.0, 0.0).numpy()
        known, rest = y[:PREAMBLE], y[PREAMBLE:]
        noise = max(known.var(), 1e-6 * known.mean() ** 2, 1e-300)
        found = self.ldpc.decode(2 * rest * known.mean() / noise)
        return torch.from_numpy(found[self.ldpc.places(self.n_bits)]).sigmoid().float()

    @torch.no_grad()
    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """The weights are put one after another once."""
        flat = places.flat(model, key.where)
        for _ in range(count):
            guess = self.keygen(other, rng, task)
            yield guess, self.decoded(self._read(flat, guess))

    @torch.no_grad()
    def forgeries(
        self, model: nn.Module, rng: np.random.Generator, task: Task, fit: Fit, tries: list[int]
    ) -> Iterator[tuple[str, int, Key]]:
        """An honest key whose symbols' signs are chosen after reading: any message, at no cost. strength: the signs."""
        key = self.keygen(model, rng, task)
        wrong = torch.where(self.channel(model, key).cpu() * self.coded(key) < 0, -1, 1).to(torch.int8)
        yield "symbols", self.symbols, replace(key, secret={**key.secret, "symbols": key.secret["symbols"] * wrong})

    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """All but the positions."""
        return places.unread(model, key.where, key.secret["positions"])

    def accepts(self, key: Key) -> bool:
        """With binding, that positions and signs are those of the committed seed, message and layers."""
        return self.binding == "none" or places.pinned(key, self._secret)


def walsh(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of [2^m], not normalised: its own inverse but for the factor 2^m."""
    for m in range(int(math.log2(len(x)))):
        a, b = x.view(-1, 2, 1 << m).unbind(1)
        x = torch.stack([a + b, a - b], 1).reshape(-1)
    return x
