"""Tondi, Costanzo, Barni: Robust and large-payload DNN watermarking via fixed, distribution-optimized, weights
(IEEE TDSC 2024, arXiv 2208.10973; code:
github.com/andreacos/Deep-Neural-Networks-Robust-Watermark)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import ConfigError, among, within
from bench.models import weights
from bench.types import Fit, Hooks, Key, Method, Task
from methods import _commitment as commitment
from methods import _positions as places


@dataclass(frozen=True)
class Tondi(Method):
    """Each bit spread over weights that are set before training and never learn.

    From the paper's abstract and released code: a bit takes `spread` positions drawn by the key; their weights are the
    bit's sign times |Laplace(0, strength sigma / sqrt 2)|, sigma the standard deviation of their layer, so that at
    strength 1 they are as large as others; Laplace is the distribution that tells least from trained weights. They are
    written before training and again after every optimiser step. A bit is read as the sign of the sum over its
    positions. Constants of the code: 256 bits, spread 6 or 50, strength 1, positions in 2 to 12 layers of one's choice.

    deviation `trained`, as there: sigma is that of a copy trained without the mark first, which doubles what embedding
    costs; `start` (ours): that of the network as embedding begins. In 200 epochs with weight decay those of the
    authors' ResNet-18 shrink to a tenth, and weights held at the start's are found without a key.

    Ours: a keyed +-1 code multiplies weight and reading (direct sequence; the code sums what it reads, so that a
    layer's mean weighs on every bit, and a message of ones would show); positions over all convolution and linear
    weights but the stem's and the head's (`layer`: a glob narrows them), where the code gives each chosen layer an
    equal share; no magnitude repeats, in itself or among the layer's (a repeated float would tell of the key).

    binding (ours): `none`, as published; `hash`: positions and code follow from a committed 32-byte seed, the message
    and the layers' names and sizes, which verification recomputes.
    Null: signs of code and message are fair coins and independent of weights, so bits of strangers are too.
    Secret `positions` [n, spread] in the concatenation of the key's layers, `code` [n, spread] of +-1.
    """

    signs = True

    n_bits: int = within(1)
    spread: int = within(1)
    strength: float = within(0, ends="(]")
    deviation: str = among("trained", "start")
    binding: str = among("none", "hash")
    situation: str = among("scratch", "finetune")
    layer: str | None

    @property
    def from_scratch(self) -> bool:
        return self.situation == "scratch"

    @property
    def trains_on(self) -> str:
        return "" if self.from_scratch else "labels"

    def again(self, factor: float) -> Tondi:
        """No factor: values are held or not."""
        return replace(self, situation="finetune")

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message, positions and code; ConfigError where more than half of the weights would be taken."""
        return places.keygen(host, self.layer, rng, self.n_bits, self.binding, self._secret)

    def _secret(self, words: places.Words, total: int) -> dict[str, Tensor]:
        taken = self.n_bits * self.spread
        if 2 * taken > total:
            raise ConfigError(
                f"method.n_bits={self.n_bits} on method.spread={self.spread} weights each are {taken:,} of {total:,} "
                "weights, and may be half of them: take fewer bits, a smaller spread or a larger model"
            )
        positions, code = (x.reshape(self.n_bits, -1) for x in places.drawn(words, total, taken, taken))
        return {"positions": torch.from_numpy(positions), "code": torch.from_numpy(code)}

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Set the marked weights, then train `host` in place around them."""
        first = self.from_scratch and self.deviation == "trained"
        held = self.held(host, key, fit(copy.deepcopy(host), task) if first else host)
        held.restore(host)
        return fit(host, task, step=held.restore)

    @property
    def harness_only(self) -> str:
        trains = self.from_scratch and self.deviation == "trained"
        return "deviation=trained trains a copy first (deviation=start does not)" if trains else ""

    def hooks(self, host: nn.Module, key: Key, seed: int) -> Hooks:
        """The values, which are held from now on, as large as the layers are now."""
        held = self.held(host, key, host)
        held.restore(host)
        return Hooks(step=held.restore)

    @torch.no_grad()
    def held(self, model: nn.Module, key: Key, like: nn.Module) -> places.Held:
        """What the marked weights of `model` are to be, drawn by the key alone, as large as the layers of `like`."""
        sizes = places.sizes(model, list(key.where))
        pairs = torch.from_numpy(places.split(key.secret["positions"].cpu().numpy().reshape(-1), sizes))
        signs = (key.secret["code"].cpu() * torch.where(key.message.cpu(), 1, -1)[:, None]).reshape(-1)
        said = [key.secret[name].cpu().numpy().tobytes() for name in ("positions", "code")]
        said.append(commitment.packed(key.message.cpu().numpy()))
        draw = np.random.default_rng(int.from_bytes(hashlib.sha256(b"".join(said)).digest()))
        found = {}
        for i in pairs[:, 0].unique().tolist():
            at = pairs[:, 0] == i
            weight = weights.read(model, key.where[i]).reshape(-1)
            scale = self.strength * float(weights.read(like, key.where[i]).std()) / math.sqrt(2)
            known = weight.abs().cpu().numpy()
            made = places.unlike(lambda count, scale=scale: draw.exponential(scale, count), int(at.sum()), known)
            values = signs[at] * torch.from_numpy(made)
            found[key.where[i]] = (pairs[at, 1].to(weight.device), values.to(weight), scale)
        return places.Held(found)

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        """Correlation of each bit's weights with its code, [n]."""
        return self._read(places.flat(model, key.where), key)

    def _read(self, flat: Tensor, key: Key) -> Tensor:
        positions, code = (key.secret[name].to(flat.device) for name in ("positions", "code"))
        return (flat[positions] * code).sum(1)

    @torch.no_grad()
    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """The weights are put one after another once."""
        flat = places.flat(model, key.where)
        for _ in range(count):
            guess = self.keygen(other, rng, task)
            yield guess, self._read(flat, guess).sigmoid()

    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """All but the positions."""
        return places.unread(model, key.where, key.secret["positions"])

    def accepts(self, key: Key) -> bool:
        """With binding, that positions and code are those of the committed seed, message and layers."""
        return self.binding == "none" or places.pinned(key, self._secret)
