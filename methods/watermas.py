"""De Sousa Trias, Mitrea, Fiandrotti, Cagnazzo, Chaudhuri, Tartaglione: WaterMAS (ICPR 2024, arXiv 2409.03902)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import log_ndtr, ndtri_exp
from torch import Tensor, nn
from torch.func import functional_call

from bench import spec
from bench.errors import ConfigError, among, within
from bench.models import weights
from bench.types import Fit, Hooks, Key, Method, Task
from methods import _commitment as commitment
from methods import _positions as places


@dataclass(frozen=True)
class Watermas(Method):
    """Bits in the signs of weights at secret positions, held through training, the loss around them made sharp.

    From the paper's abstract: substitutive, white-box, inserted during training; the key is the positions, drawn at
    random through several layers; the marked weights keep their values while the loss is sharpened around them, so that
    altering them hurts the model. The objective below is our formulation: the paper's was not to be had.

    Substitution: n positions over all convolution and linear weights but the stem's and the head's (`layer`: a glob
    narrows them). A position holds sign = bit and a magnitude of at least amplitude x the layer's standard deviation:
    its own, or else one drawn, by the key, from those of the layer that are as large (`tail`). It is set before
    training and again after every optimiser step. Extraction: the sign; an exact 0 is half an error.
    Until version 2 all that were smaller got the bound itself: one float, so often repeated in a layer that it told the
    positions to whoever looked, without a key.
    Sharpening, in every `every`-th step: sharpness x relu(log margin - log(KL(p || p') + 1e-6)) is added to the loss,
    p the outputs, p' those with the marked weights perturbed: by Gaussian noise of 0.5 to 1.5 standard deviations, by
    zeroing a quarter to all, or by negating a half to all of them, at random. The second pass draws the same dropout
    and moves no running statistics. The weight rises over the first tenth of the steps. sharpness 0: no sharpening.

    binding (ours): `none`, as published; `hash`: message and positions follow from a committed 32-byte seed and the
    layers' names and sizes, which verification recomputes (the message too: weights have no equal share of signs).
    Secret `positions` [n, 2]: index into the key's layer names, position in that weight.
    """

    signs = True

    n_bits: int = within(1)
    amplitude: float = within(0, ends="(]")
    sharpness: float = within(0)
    margin: float = within(0, ends="(]")
    every: int = within(1)
    binding: str = among("none", "hash")
    situation: str = among("scratch", "finetune")
    layer: str | None

    version = 2  # 2: no two magnitudes alike

    @property
    def from_scratch(self) -> bool:
        return self.situation == "scratch"

    @property
    def trains_on(self) -> str:
        return "" if self.from_scratch else "labels"

    def again(self, factor: float) -> Watermas:
        """No factor: a substitution is made or not."""
        return replace(self, situation="finetune")

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n] and `positions` [n, 2]; ConfigError where the layers hold fewer weights than bits."""
        names = places.layers(host, self.layer)
        sizes = places.sizes(host, names)
        if sizes.sum() < self.n_bits:
            raise ConfigError(f"{len(names)} layers hold {sizes.sum():,} weights for method.n_bits={self.n_bits}")
        secret = {}
        if self.binding == "hash":
            seed = commitment.draw_seed(rng)
            message, flat = bound(seed, names, sizes, self.n_bits)
            secret |= {"seed": torch.from_numpy(seed), "sizes": torch.from_numpy(sizes)}
        else:
            message = rng.integers(0, 2, self.n_bits).astype(bool)
            flat = rng.choice(int(sizes.sum()), self.n_bits, replace=False)
        secret["positions"] = torch.from_numpy(places.split(flat, sizes))
        return Key(torch.from_numpy(message), secret, tuple(names))

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Set the marked weights, then train `host` in place around them."""
        device = next(host.parameters()).device
        marks = Marks.of(host, key, self.amplitude, device)
        marks.restore(host)
        if not self.sharpness:
            return fit(host, task, step=marks.restore)
        draws = Draws.seeded(fit.seed, device)
        return fit(host, task, loss=self._sharpened(marks, task, fit, draws), step=marks.restore, state=[draws])

    @property
    def harness_only(self) -> str:
        return "it sharpens the loss on a task's own batches (sharpness=0 does not)" if self.sharpness else ""

    def hooks(self, host: nn.Module, key: Key, seed: int) -> Hooks:
        """The substitution, which holds from now on."""
        marks = Marks.of(host, key, self.amplitude, weights.read(host, key.where[0]).device)
        marks.restore(host)
        return Hooks(step=marks.restore)

    def _sharpened(self, marks: Marks, task: Task, fit: Fit, draws: Draws) -> Callable[[nn.Module, Any], Tensor]:
        ramp = max(1.0, 0.1 * fit.train.epochs * (task.size(task.train) // fit.train.batch_size))
        devices = [draws.noise.device] if draws.noise.device.type == "cuda" else []

        def loss(model: nn.Module, batch: Any) -> Tensor:
            draws.step += 1
            if draws.step % self.every:
                return task.loss(model, batch)
            outputs: list[Tensor] = []
            hook = model.register_forward_hook(lambda module, args, out: outputs.append(out))
            state = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
            value = task.loss(model, batch)
            hook.remove()
            changed = marks.perturbed(model, draws.kinds, draws.noise)
            # Copies of the buffers: the second pass moves no running statistics.
            buffers = {name: b.clone() for name, b in model.named_buffers()}
            with torch.random.fork_rng(devices):  # the same dropout, or that alone would tell the outputs apart
                torch.set_rng_state(state[0])
                for d, s in zip(devices, state[1:], strict=True):
                    torch.cuda.set_rng_state(s, d)
                other = functional_call(model, {**changed, **buffers}, (task.inputs(batch),))
            apart = task.divergence(outputs[0], other).clamp_min(0)
            weight = self.sharpness * min(1.0, draws.step / ramp)
            return value + weight * torch.relu(math.log(self.margin) - torch.log(apart + 1e-6))

        return loss

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        """The marked weights in standard deviations of their layers, [n]."""
        return self._read(model, key, {})

    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """The layers' standard deviations, most of the time that a reading takes, are found once."""
        spreads: dict[str, Tensor] = {}
        for _ in range(count):
            guess = self.keygen(other, rng, task)
            yield guess, self._read(model, guess, spreads).detach().sigmoid()

    def _read(self, model: nn.Module, key: Key, spreads: dict[str, Tensor]) -> Tensor:
        """The logits; standard deviations by layer are taken from `spreads`, or put there."""
        found = torch.zeros(key.n_bits, device=weights.read(model, key.where[0]).device)
        positions = key.secret["positions"].to(found.device)
        for i in positions[:, 0].unique().tolist():
            name = key.where[i]
            weight = weights.read(model, name).reshape(-1)
            if name not in spreads:
                spreads[name] = weight.detach().std().clamp_min(torch.finfo(weight.dtype).tiny)
            bits = (positions[:, 0] == i).nonzero()[:, 0]
            found = found.index_put((bits,), weight[positions[bits, 1]] / spreads[name])
        return found

    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """All but the positions. (The logits' unit, a layer's standard deviation, depends on it; no sign does.)"""
        sizes = torch.tensor([weights.read(model, name).numel() for name in key.where])
        layer, place = key.secret["positions"].cpu().T
        return places.unread(model, key.where, (sizes.cumsum(0) - sizes)[layer] + place)

    def accepts(self, key: Key) -> bool:
        """With binding, that message and positions are those of the committed seed and layers."""

        def made(seed: np.ndarray, message: np.ndarray) -> dict[str, Tensor]:
            sizes = key.secret["sizes"].cpu().numpy()
            bits, flat = bound(seed, list(key.where), sizes, len(message))
            return {"message": torch.from_numpy(bits), "positions": torch.from_numpy(places.split(flat, sizes))}

        return self.binding == "none" or ("sizes" in key.secret and commitment.follows(key, made))


@dataclass
class Draws:
    """What sharpening draws from, and the steps it has taken: what a checkpoint keeps beside the model."""

    kinds: np.random.Generator
    noise: torch.Generator
    step: int = 0

    @staticmethod
    def seeded(seed: int, device: torch.device) -> Draws:
        noise = torch.Generator(device).manual_seed(spec.derive(seed, "perturbation"))
        return Draws(np.random.default_rng(spec.derive(seed, "sharpness")), noise)

    def state_dict(self) -> dict[str, Any]:
        return {"kinds": self.kinds.bit_generator.state, "noise": self.noise.get_state(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kinds.bit_generator.state, self.step = state["kinds"], state["step"]
        self.noise.set_state(state["noise"])


@dataclass(frozen=True)
class Marks(places.Held):
    """The marked weights; what else is known of a layer is its standard deviation at the start."""

    @staticmethod
    @torch.no_grad()
    def of(model: nn.Module, key: Key, amplitude: float, device: torch.device) -> Marks:
        positions, bits = key.secret["positions"].to(device), key.message.to(device)
        # By the key alone: whoever has it makes the same marks again.
        said = key.secret["positions"].cpu().numpy().tobytes() + key.message.cpu().numpy().tobytes()
        draw = np.random.default_rng(int.from_bytes(hashlib.sha256(said).digest()))
        found = {}
        for i in positions[:, 0].unique().tolist():
            at = positions[:, 0] == i
            where, sign = positions[at, 1], torch.where(bits[at], 1.0, -1.0)
            weight = weights.read(model, key.where[i]).reshape(-1)
            sizes, spread = weight.abs(), weight.std()
            small = sizes[where] < amplitude * spread
            held = sizes[where]
            held[small] = tail(sizes, amplitude * spread, spread, int(small.sum()), draw)
            found[key.where[i]] = (where, sign * held, spread)
        return Marks(found)

    def perturbed(self, model: nn.Module, draw: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        """The marked layers' weights, differentiable, with the marked values perturbed in one of three ways."""
        kind, size = draw.integers(3), draw.uniform()
        changed = {}
        for name, (where, values, spread) in self.layers.items():
            if kind == 0:
                random = torch.randn(values.shape, generator=noise, device=values.device)
                change = (0.5 + size) * spread * random
            else:  # zero a quarter to all, or negate a half to all
                share = 0.25 + 0.75 * size if kind == 1 else 0.5 + 0.5 * size
                taken = torch.rand(values.shape, generator=noise, device=values.device) < share
                change = -float(kind) * values * taken
            weight = model.get_parameter(name)
            flat = torch.zeros(weight.numel(), device=weight.device).index_put((where,), change)
            changed[name] = weight + flat.view(weight.shape)
        return changed


FEW = 32  # weights above a bound: fewer do not say how they are distributed


def tail(sizes: Tensor, floor: Tensor, spread: Tensor, count: int, draw: np.random.Generator) -> Tensor:
    """`count` magnitudes distributed as those of `sizes` [N] >= floor are, [count]: no two alike, and none of `sizes`.

    Quantiles between neighbours of that order; where there are fewer than FEW, of a normal distribution's tail, its
    standard deviation being `spread`.
    """
    known = np.sort(sizes.detach().cpu().numpy())
    above, least = known[known >= float(floor)].astype(np.float64), float(floor / spread)

    def make(number: int) -> np.ndarray:
        rank = draw.random(number)
        if len(above) >= FEW:
            return np.interp(rank * (len(above) - 1), np.arange(len(above)), above)
        return -ndtri_exp(np.log1p(-rank) + log_ndtr(-least)) * float(spread)

    return torch.from_numpy(places.unlike(make, count, known, float(floor))).to(sizes.device)


def bound(seed: np.ndarray, names: list[str], sizes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(message [n], n distinct positions in the concatenated layers) from a committed seed and the layers."""
    stream = commitment.words(seed, places.said(names, sizes), 9 * n + 64)
    return stream[:n] >> np.uint64(63) == 1, places.first(stream[n:], int(sizes.sum()), n)
