"""Tang, Chen, Xue, Zhang: Protecting deep neural network intellectual property with frequency components (2505.01007).

The paper's revised Fourier transform of a K x K kernel W on an M x N map, F(u, v) = sum W[t, s] exp(i 2 pi (u t / M +
v s / N)) for real u, v, is the kernel's own DFT (conjugate) at the set S of u = iM/K or v = jN/K, i, j = 1 .. K-1.
Where a layer's input is constant over space and its padding is not zeros, every tap of a kernel receives the same
gradient, so gradient descent moves the kernel along the all-ones direction only, which no component at S sees (the
paper's theorem).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import ConfigError, among, near, within
from bench.models import branches, weights
from bench.types import Fit, Key, Task
from methods import _commitment as commitment
from methods import _matching as matching
from methods._regulariser import Regulariser

KERNELS = f"{branches.NAME}.conv.weight"


@dataclass(frozen=True)
class Frequency(Regulariser):
    """Bits in the components at S of a module's kernels, written once and left alone by training.

    module true (the paper's): y = x + BN(conv_K(lowpass(x))) in parallel to one stage of the network, or to the patch
    embedding of a transformer; as many filters D as channels C, no bias, circular padding. Carriers: the K^2 - 1 real
    non-DC components of each kernel (a band `radius` r > 0 leaves K^2 - (2r + 1)^2), all but those of the pilots, a few
    kernels of each filter that align a permuted module (methods/_matching.py). A carrier of bit b holds its keyed sign
    times (2 b - 1) times lambda_ spreads of its filter, put there by substitution before training. A bit is the sign of
    the sum of its carriers times their signs (soft: all carriers of a bit vote with their values).

    module false (ours, in place): a regulariser on an ordinary convolution, cross-entropy of keyed projections of the
    non-DC DFT components of its kernels averaged over the filters, weighted by lambda_. Its input is not constant, so
    the theorem does not hold for it.

    Ours too: which stage (the fewest channels that give a bit 64 carriers, the deepest of those), the amplitude, pilots
    of their own for the alignment (so that the search says nothing about the bits, and the binomial null holds), and
    binding `hash`: assignment and signs follow from a committed seed, the message and the pilots, which verification
    recomputes.
    Secret: `assignment` [n, m] and `signs` [n, m] of the carriers, `reference` [D, C, K^2 - 1]; in place `projection`.
    """

    module: bool
    kernel: int = within(3, 99)
    radius: int = within(0)
    stage: str | None
    match: bool
    binding: str = among("none", "hash")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel <= 2 * self.radius + 1 or self.kernel % 2 == 0:
            raise ConfigError(
                f"method.kernel={self.kernel}: must be odd and above 2 x radius + 1 = {2 * self.radius + 1}, "
                "or no component is left that training cannot reach"
            )
        if not self.module and self.binding != "none":
            raise ConfigError("method.binding=hash needs method.module=true")

    def extend(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        if not self.module:
            return super().extend(model, task, seed)
        if self.situation == "lora":
            raise ConfigError("method.situation=lora trains a change of other layers, not the module")
        causal = task.gives == "text"
        if causal and self.radius:
            raise ConfigError(f"method.radius={self.radius}: tokens of a text are no grid; method.radius=0")
        site, shape = choose(model, task.example(), self.stage, self.n_bits, len(self.free((64, 64))), causal)
        layout = (
            "causal"
            if causal
            else "tokens"
            if len(shape) == 3
            else "first"
            if first(shape, task.example().shape)
            else "last"
        )
        if causal:
            size = (1, shape[1])
        elif self.radius and layout == "tokens":
            side = math.isqrt(shape[1])
            if side * side != shape[1]:
                raise ConfigError(f"method.radius={self.radius}: the {shape[1]} tokens of {site} are no square grid")
            size = (side, side)
        else:
            size = tuple(shape[2:]) if layout == "first" else tuple(shape[1:3])
        if self.radius and min(size) <= 2 * self.radius:
            raise ConfigError(f"method.radius={self.radius}: {site} gives maps of {size}, which hold no such band")
        channels = shape[1] if layout == "first" else shape[-1]
        torch.manual_seed(seed)
        module = Module(channels, self.kernel, self.radius, layout, size)
        return branches.attach(model, site, module.to(next(model.parameters()).device))

    def free(self, size: tuple[int, int]) -> Tensor:
        """The components that training cannot reach, as an orthonormal basis [B, K^2] of real kernels."""
        return basis(self.kernel, self.radius, *size)

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n] and secret, see the class. Raises ConfigError where the carriers are too few."""
        if not self.module:
            name = weights.choose(host, self.layer, capacity, self.n_bits, "non-DC components of averaged kernels")
            m = capacity(weights.read(host, name))
            message = torch.from_numpy(rng.integers(0, 2, self.n_bits).astype(bool))
            x = torch.from_numpy(rng.standard_normal((self.n_bits, m), dtype=np.float32))
            return Key(message, {"projection": x}, (name,))
        message = rng.integers(0, 2, self.n_bits).astype(bool)
        with torch.no_grad():
            reference = self.components(host).cpu().clone()
        payload = matching.payload(reference.shape)
        if len(payload) < self.n_bits:
            raise ConfigError(f"the module has {len(payload):,} carriers for method.n_bits={self.n_bits}")
        m = len(payload) // self.n_bits
        if self.binding == "hash":
            seed = commitment.draw_seed(rng)
            secret = {**bound(seed, message, reference), "seed": torch.from_numpy(seed)}
        else:
            order = rng.permutation(len(payload))[: self.n_bits * m].reshape(self.n_bits, m)
            signs = rng.integers(0, 2, (self.n_bits, m)).astype(np.int8) * 2 - 1
            secret = {"assignment": payload[torch.from_numpy(order)], "signs": torch.from_numpy(signs)}
        spread = reference.flatten(1).std(1).clamp_min(1e-12)
        bits = torch.from_numpy(message).float() * 2 - 1
        rows = secret["assignment"].long() // reference[0].numel()
        reference.view(-1)[secret["assignment"].long()] = self.lambda_ * spread[rows] * secret["signs"] * bits[:, None]
        return Key(torch.from_numpy(message), {**secret, "reference": reference}, (KERNELS,))

    def kernels(self, model: nn.Module) -> nn.Parameter:
        """The module's kernels [D, C, K, K]."""
        return model.get_parameter(KERNELS)

    def components(self, model: nn.Module) -> Tensor:
        """Carriers of the module's kernels, [D, C, B]: how much of each component that training cannot reach."""
        kernels = weights.read(model, KERNELS)
        return kernels.flatten(2) @ self._basis(model, kernels).T

    def _basis(self, model: nn.Module, kernels: Tensor) -> Tensor:
        return self.free(tuple(branches.branch(model).size.tolist())).to(kernels)

    @torch.no_grad()
    def parts(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """(components [D, C, B], the rest of the kernels [D, C, K^2]) of the module, in float64."""
        kernels = self.kernels(model).double().flatten(2)
        free = self._basis(model, kernels)
        found = kernels @ free.T
        return found, kernels - found @ free

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Write the components, then train `host` in place; in place of a module, train with the penalty."""
        if not self.module:
            return super().embed(host, key, task, fit)
        with torch.no_grad():
            kernels = self.kernels(host)
            change = key.secret["reference"].to(kernels.device) - self.components(host)
            kernels += (change @ self._basis(host, kernels)).view_as(kernels)
        return self.train(host, task, fit)

    @property
    def harness_only(self) -> str:
        return "it adds a module to the network" if self.module else super().harness_only

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        """Sum of each bit's sign-corrected carriers, in standard deviations of a random sum."""
        if not self.module:
            return super().logits(model, key)
        return self._read(self._found(model, key), key)

    def _found(self, model: nn.Module, key: Key) -> Tensor:
        """The carriers [D, C, B], matched with the key's pilots."""
        found = self.components(model)
        return matching.aligned(found, key.secret["reference"].to(found.device)) if self.match else found

    def _read(self, found: Tensor, key: Key) -> Tensor:
        assignment, signs = (key.secret[name].to(found.device) for name in ("assignment", "signs"))
        values = found.reshape(-1)[assignment.long()] * signs
        scale = found.detach().square().mean().sqrt().clamp_min(torch.finfo(found.dtype).tiny)
        return values.sum(1) / (scale * math.sqrt(values.shape[1]))

    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """Keys drawn for one network have the same pilots: channels are matched once."""
        if not self.module:
            yield from super().trials(model, key, other, rng, count, task)
            return
        found = None
        for _ in range(count):
            key = self.keygen(other, rng, task)
            with torch.no_grad():
                found = self._found(model, key) if found is None else found
                soft = torch.sigmoid(self._read(found, key))
            yield key, soft

    def reader(self, key: Key, device: torch.device) -> Callable[[Tensor], Tensor]:
        x = key.secret["projection"].to(device)

        def read(weight: Tensor) -> Tensor:
            free = rectangular(*weight.shape[2:]).to(device)
            return x @ (weight.mean(0).flatten(1) @ free.T).reshape(-1)

        return read

    @torch.no_grad()
    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """The kernels without the bits' carriers: what training reaches, and the pilots; in place of a module, without
        the components of their average. (Pilots enter the logits' unit and, with `match`, the order of reading.)"""
        kernels = weights.read(model, key.where[0]).double()
        if self.module:
            free = self._basis(model, kernels)
            read = (kernels.flatten(2) @ free.T).flatten()
            read[matching.pilots(torch.Size((*kernels.shape[:2], len(free)))).to(read.device).long()] = 0
            read = read.view(*kernels.shape[:2], -1)
        else:
            free = rectangular(*kernels.shape[2:]).to(kernels)
            read = kernels.mean(0, keepdim=True).flatten(2) @ free.T
        return {key.where[0]: (kernels - (read @ free).unflatten(2, kernels.shape[2:])).float()}

    def accepts(self, key: Key) -> bool:
        """With binding, that assignment and signs are those of the committed seed, message and pilots."""
        return self.binding == "none" or commitment.follows(
            key, lambda seed, message: bound(seed, message, key.secret["reference"].cpu())
        )


class Module(nn.Module):
    """BN(conv_K(lowpass(x))) of a stage's output x; `layout` says where x has its channels.

    lowpass keeps the frequencies |u|, |v| <= radius. For radius 0 it is the mean over space, and the circular
    convolution of a constant map is computed on one K x K patch of it: one pixel's work. Outside autocast: the theorem
    wants equal gradients, and bfloat16 rounds them apart (as, for radius > 0, does TF32 on CUDA, though less). Of a
    text (`causal`, ours) the mean at each token is that of the tokens so far: one of all would tell what comes next.
    """

    def __init__(self, channels: int, kernel: int, radius: int, layout: str, size: tuple[int, int]):
        super().__init__()
        padding = {"padding": kernel // 2, "padding_mode": "circular"} if radius else {}
        self.conv = nn.Conv2d(channels, channels, kernel, bias=False, **padding)
        self.bn = nn.BatchNorm2d(channels)
        if layout == "causal":  # a stream of text starts that small, and would be drowned
            nn.init.constant_(self.bn.weight, 0.02)
        self.radius, self.layout = radius, layout
        self.register_buffer("size", torch.tensor(size))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.conv.weight.dtype)
            if self.layout == "first":
                return self._seen(x)
            if self.layout == "last":
                return self._seen(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if self.layout == "causal":
                so_far = torch.ones(x.shape[1], x.shape[1], device=x.device, dtype=x.dtype).tril()
                low = (so_far / so_far.sum(1, keepdim=True)).expand(len(x), -1, -1) @ x
                return self._seen(low.flatten(0, 1)[:, :, None, None]).flatten(1).view(x.shape)
            grid = tuple(self.size.tolist()) if self.radius else (1, -1)
            return self._seen(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)

    def _seen(self, x: Tensor) -> Tensor:
        if self.radius == 0:
            low = x.mean((2, 3), keepdim=True).expand(-1, -1, *self.conv.kernel_size)
        else:
            low = lowpass(x, self.radius)
        return self.bn(self.conv(low))


def lowpass(x: Tensor, radius: int) -> Tensor:
    """x [B, C, M, N] without the frequencies above `radius` along either axis."""
    found = torch.fft.fft2(x)
    m, n = (torch.fft.fftfreq(s, 1 / s, device=x.device).abs() <= radius for s in x.shape[2:])
    return torch.fft.ifft2(found * (m[:, None] & n[None, :])).real


@lru_cache
def rectangular(height: int, width: int) -> Tensor:
    """Non-DC components of height x width kernels: the rows of their real (Hartley) Fourier basis but the first."""
    rows, columns = np.indices((height, width)).reshape(2, -1)
    phase = 2 * math.pi * (np.outer(rows, rows) / height + np.outer(columns, columns) / width)
    return torch.from_numpy(((np.cos(phase) + np.sin(phase)) / math.sqrt(height * width))[1:].astype(np.float32))


@lru_cache
def basis(kernel: int, radius: int, height: int, width: int) -> Tensor:
    """Kernels orthogonal to every wave of at most `radius` on a height x width map: orthonormal rows [B, K^2].

    Radius 0: the non-DC rows of the real Fourier basis, whatever the map. Else their span's part outside the band,
    orthonormalised in order, so that everybody finds the same rows.
    """
    if radius == 0:
        return rectangular(kernel, kernel)
    t = np.arange(kernel)
    waves = [
        np.stack([f(2 * math.pi * u * t / size) for u in range(radius + 1) for f in (np.cos, np.sin)])
        for size in (height, width)
    ]
    band = np.einsum("at,bs->abts", *waves).reshape(-1, kernel**2)
    taken = list(np.linalg.svd(band)[2][: np.linalg.matrix_rank(band)])
    rows = []
    for row in rectangular(kernel, kernel).numpy().astype(np.float64):
        for other in [*taken, *rows, *taken, *rows]:  # twice is enough to lose nothing to rounding
            row = row - (row @ other) * other
        if (norm := np.linalg.norm(row)) > 1e-6:
            rows.append(row / norm)
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def capacity(weight: Tensor) -> int:
    """Non-DC components of a convolution's kernels averaged over its filters; 0 for anything else."""
    return weight.shape[1] * (weight[0, 0].numel() - 1) if weight.dim() == 4 else 0


def first(shape: torch.Size, inputs: torch.Size) -> bool:
    """Whether maps of inputs [B, 3, H, W] have their channels before their sides: those are in the inputs' proportion,
    but for what strides round off."""
    height, width = inputs[2:]
    return abs(shape[2] / shape[3] - height / width) <= abs(shape[1] / shape[2] - height / width)


def bound(seed: np.ndarray, message: np.ndarray, reference: Tensor) -> dict[str, Tensor]:
    """Assignment [n, m] and signs [n, m] of the carriers, from a committed seed, the message and the pilots.

    The pilots too, because they decide in which order and with which signs the carriers are read.
    """
    payload = matching.payload(reference.shape)
    count, m = len(payload), len(payload) // len(message)
    pilots = reference.reshape(-1)[matching.pilots(reference.shape)].numpy().astype("<f4").tobytes()
    words = commitment.words(seed, commitment.packed(message) + pilots, 2 * count)
    order = np.argsort(words[:count], kind="stable")[: len(message) * m].reshape(len(message), m)
    signs = (words[count:] >> np.uint64(63)).astype(np.int8)[: len(message) * m].reshape(len(message), m) * 2 - 1
    return {"assignment": payload[torch.from_numpy(order)], "signs": torch.from_numpy(signs)}


@torch.no_grad()
def choose(
    model: nn.Module, example: Tensor, pattern: str | None, n_bits: int, free: int, causal: bool = False
) -> tuple[str, torch.Size]:
    """(name, shape of its output) of the part that the module goes in parallel to.

    Stages that give maps [B, C, H, W] (or [B, H, W, C]), patch embeddings that give tokens, and of a text
    (`causal`) all blocks; of those where a bit
    gets 64 carriers the one with the fewest channels, the deepest of equals. Raises ConfigError where there is none.
    """
    names = dict.fromkeys(weights.stage(name.removesuffix(".weight")) for name in weights.candidates(model))
    names = [pattern] if pattern is not None else list(names)
    shapes: dict[str, torch.Size] = {}
    hooks = []
    for name in names:
        try:
            part = model.get_submodule(name)
        except AttributeError:
            offer = near(name, [n for n, _ in model.named_modules() if n], 12)
            raise ConfigError(f"method.stage={name}: the network has no such part; {offer}") from None

        def note(_: nn.Module, args: object, out: object, name: str = name) -> None:
            tokens = causal or name.split(".")[-1] in ("patch_embed", "stem")
            if isinstance(out, Tensor) and (out.dim() == 4 or (out.dim() == 3 and (tokens or pattern))):
                shapes[name] = out.shape

        hooks.append(part.register_forward_hook(note))
    was_training = model.training
    model.eval()(example)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    channels = {name: s[1] if len(s) == 4 and first(s, example.shape) else s[-1] for name, s in shapes.items()}
    fit = [n for n, c in channels.items() if c * (c - matching.PILOTS) * free >= (n_bits if pattern else 64 * n_bits)]
    if not fit:
        what = f"method.stage={pattern}" if pattern else "no stage of this network"
        raise ConfigError(
            f"{what} gives a map with channels enough for {n_bits} bits: take fewer, or method.module=false"
        )
    best = min(reversed(fit), key=lambda name: channels[name])
    return best, shapes[best]
