"""Zhang, Chen, et al.: Model watermarking for image processing networks (AAAI 2020); Deep model intellectual property
protection via deep watermarking (TPAMI 2021).

A barrier after an image-to-image network hides one mark in every picture it gives; whoever trains a surrogate on its
inputs and outputs learns the mark with the task, and the owner's extractor reads it from the surrogate's pictures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import spec
from bench.data.decoding import read_all
from bench.data.pixels import seen
from bench.errors import ConfigError, among, within
from bench.machine import device_of
from bench.models import branches
from bench.types import Fit, Key, Method, Task
from methods._barrier import BLANK, Barrier, Extractor, stretched
from methods._stages import Recipe, Stages

SIDE = 32  # of a logo
CHUNK = 256  # pictures read at once
STRAY = 0.05  # least standard deviation of a logo's null


@dataclass(frozen=True)
class Boxfree(Recipe, Method):
    """The mark is in the pictures: extraction sees a suspect's outputs for held-out inputs and nothing of its weights.

    payload `bits`: n_bits as squares of a grid, drawn anew for every training picture, so that the extractor reads what
    is there and not what it knows; its training does not depend on the message that is deployed, nor does what it reads
    from a suspect: the binomial null holds. A bit is the mean of its square over all pictures, against 1/2. Squares
    that stay nearer to 1/2 than `presence` on average carry no message at all (every bit undecided).
    payload `image` (the papers'): one fixed logo (a file, or one of ours), one bit: it is there. Evidence is how much
    of the logo is in the reading: the slope of the reading in the logo, both less 1/2, mean over pictures; 0 for none,
    1 for all. Null: Student's t predictive distribution, fitted to the slopes of the owner's unmarked outputs on its
    validation patches, a suspect counted as one patch, for errors on patches are not independent, and their deviation
    as at least 0.05. It is the null of that one network's outputs: what others' show is for the clean controls to say.
    The papers' uncentred correlation (nc) calls a blank reading similar, a centred one forgets how faint a reading is:
    both are reported. There is no random key for a logo, whose extractor knows nothing else.

    Stages, epochs of the owner's data each. Initial: barrier, extractor and patch discriminator together; `fidelity`
    times the squared change (pixels over 255), as far as the mark is read already and the change is above what `target`
    allows, a PSNR in dB (how faint a mark is decides whether surrogates learn it: that must not depend on how long the
    owner trained); `gan` times the adversarial loss; squared errors of the reading of marked pictures, twice of inputs'
    and unmarked outputs', and between pictures that carry the same mark. Adversarial: simulated surrogates
    (`surrogate`, a conf/model node, each with a message of its own) learn barrier outputs, and the extractor alone is
    tuned on theirs as well. absorbed: the network then learns the barrier's outputs itself, the extractor frozen, and
    is released in its place; else it stays behind the barrier, as a service.

    Not as there: networks and schedule a hundredth (a U-Net of 3 levels, an extractor of 42 k weights), bits, random
    messages, a start from squares that anybody sees, losses relative to the message's, the change's bound, no
    perceptual term (0 in the released code too), no consistency term in the adversarial stage (the released code keeps
    it), an extractor that reads RGB and ends linearly (there: greyscale, a final ReLU), and the absorbed network learns
    from the barrier, not together with it. Ambiguity is not answered: anybody can train an extractor that finds a
    message of his own in the same pictures (`forgeries`).

    Secret: the extractor's weights, `extractor.*`; for a logo `mark` [1, S, S] and `null` [3] (mean, standard
    deviation, count). keygen draws them untrained; embed trains them in place.
    """

    n_bits: int = within(1)
    payload: str = among("bits", "image")
    logo: str | None = spec.file()
    presence: float = within(0, 0.5, ends="[)")
    absorbed: bool
    adversarial: bool
    width: int = within(1)
    depth: int = within(1)

    access = "outputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isqrt(self.n_bits) ** 2 != self.n_bits:
            raise ConfigError(f"method.n_bits={self.n_bits}: bits fill a square grid: 16, 25, 36, 49, 64, ...")
        if not isinstance(self.surrogate, dict):
            raise ConfigError(f"method.surrogate takes a model: model@method.surrogate={self.surrogate}")

    @property
    def released(self) -> bool:
        return self.absorbed

    def extend(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        """`model` behind an untrained barrier. Raises ConfigError where no pictures come out, or too small ones."""
        if task.gives != "pictures":
            raise ConfigError("method=boxfree marks pictures: task=restoration")
        side, size = task.example().shape[-1], self.size()
        if self.payload == "bits" and side % size:
            raise ConfigError(f"method.n_bits={self.n_bits}: {size} squares do not fit a side of {side} pixels")
        if side % 2**self.depth:
            raise ConfigError(f"method.depth={self.depth}: pictures of {side} pixels cannot be halved so often")
        if task.size("validation") < 2:
            raise ConfigError(
                "method=boxfree reads its mark from the owner's validation pictures: raise data.validation"
            )
        if self.adversarial:  # an hour later is late to hear that it cannot be built
            task.build(spec.build(self.surrogate, "method.surrogate"), 0)
        return model if self.absorbed else branches.attach(model, "", self._barrier(model, seed))

    def size(self) -> int:
        """Squares, or a logo's pixels, along a side of the mark."""
        return math.isqrt(self.n_bits) if self.payload == "bits" else SIDE

    def _barrier(self, model: nn.Module, seed: int) -> Barrier:
        torch.manual_seed(seed)
        return Barrier(self.width, self.depth, self.size()).to(next(model.parameters()).device)

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n] (a logo: one bit, true) and an untrained extractor. ConfigError for a logo that shows nothing."""
        bits = rng.integers(0, 2, self.n_bits).astype(bool) if self.payload == "bits" else np.ones(1, bool)
        secret = {f"extractor.{name}": x for name, x in untrained(int(rng.integers(2**62))).state_dict().items()}
        if self.payload == "image":
            secret |= {"mark": drawn(self.logo), "null": torch.tensor([0.0, 1.0, 2.0])}
            if (shown := self._present(secret["mark"][None])) < 1.25 * self.presence:
                raise ConfigError(
                    f"method.logo: its squares lie {shown:.2f} from middle grey on average, which is no presence; "
                    "take one of larger, plainly light and dark parts"
                )
        return Key(torch.from_numpy(bits), secret, ())

    def mark(self, key: Key) -> Tensor:
        """What the barrier is to hide, [1, S, S] in [0, 1]."""
        if self.payload == "image":
            return key.secret["mark"]
        return key.message.float().view(1, self.size(), self.size())

    def extractor(self, key: Key, device: torch.device) -> Extractor:
        """The key's, in evaluation mode."""
        net = untrained(0)
        start = "extractor."
        net.load_state_dict({k.removeprefix(start): x for k, x in key.secret.items() if k.startswith(start)})
        return net.to(device).eval()

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Train barrier and extractor for `host`, which stays as it is unless it absorbs the barrier."""
        device = next(host.parameters()).device
        clean, barrier = copy.deepcopy(host).eval().requires_grad_(False), branches.branch(host)
        if barrier is None:
            barrier = self._barrier(host, spec.derive(fit.seed, "barrier"))
        else:
            branches.detach(clean)
        extractor, mark = self.extractor(key, device), self.mark(key).to(device)
        fit = fit.using(optimizer="adamw", weight_decay=0.0, schedule="cosine")
        stages = Stages(self, clean, barrier, extractor, task, fit, mark if self.payload == "image" else None)
        stages.initial()
        if self.adversarial:
            stages.adversarial()
        with torch.no_grad():
            barrier.mark.copy_(mark)
        if self.absorbed:
            host = stages.absorb(host)
        for name, x in extractor.state_dict().items():
            key.secret[f"extractor.{name}"].copy_(x)
        if self.payload == "image":
            self._fit_null(key, task.answers(clean))
        return host.eval().requires_grad_(True)

    def _fit_null(self, key: Key, unmarked: Tensor) -> None:
        """A logo's null from unmarked pictures [N, 3, H, W], into the key."""
        found = self._slope(self.read(unmarked, key), key)
        key.secret["null"].copy_(torch.tensor([found.mean(), found.std(), len(found)]))

    def read(self, pictures: Tensor, key: Key) -> Tensor:
        """What the extractor sees in pictures [N, 3, H, W]: [N, 1, H, W] about [0, 1], on the CPU."""
        net = self.extractor(key, pictures.device)
        with torch.inference_mode():
            return torch.cat([net(part).float().cpu() for part in pictures.split(CHUNK)])

    def extract(self, model: nn.Module, key: Key, task: Task) -> Tensor:
        return self.soft(self.read(task.answers(model), key), key)

    def soft(self, maps: Tensor, key: Key) -> Tensor:
        """Soft bits [n] of readings [N, 1, H, W]; all 0.5 where no message is present."""
        if self.payload == "image":
            vote = torch.stack([(1 + self._slope(maps, key).mean()) / 2])
        else:
            vote = self._squares(maps).mean(0)
        # Readings are no probabilities: a square may overshoot.
        vote = vote.nan_to_num(BLANK).clamp(0, 1)
        return vote if self._present(maps) >= self.presence else torch.full_like(vote, BLANK)

    def _squares(self, maps: Tensor) -> Tensor:
        """Means over squares, [N, n]; a logo's are 8 x 8."""
        return functional.adaptive_avg_pool2d(maps, self.size() if self.payload == "bits" else 8).flatten(1)

    def _present(self, maps: Tensor) -> float:
        """How far the squares of the mean reading are from 1/2, on average."""
        return float((self._squares(maps).mean(0) - BLANK).abs().mean())

    def evidence(self, soft: Tensor, key: Key) -> tuple[float, float]:
        error, log10_p = super().evidence(soft, key)
        if self.payload == "image" and float(soft[0]) == BLANK:
            log10_p = 0.0  # absent: no evidence, wherever the null's mean lies
        elif self.payload == "image":
            from scipy.stats import t

            mean, deviation, count = key.secret["null"].tolist()
            score = (2 * float(soft[0]) - 1 - mean) / (max(deviation, STRAY) * math.sqrt(1 + 1 / count))
            log10_p = min(0.0, float(t.logsf(score, count - 1)) / math.log(10))
        return error, log10_p

    def _slope(self, maps: Tensor, key: Key) -> Tensor:
        """How much of the mark each reading shows, [N]: least squares, 0 for none and 1 for all of it."""
        mark = (self._target(maps, key) - BLANK).flatten(1)
        return ((maps - BLANK).flatten(1) * mark).sum(1) / mark.square().sum(1)

    def _target(self, maps: Tensor, key: Key) -> Tensor:
        return stretched(self.mark(key).cpu()[None], maps)

    def readings(self, maps: Tensor, key: Key) -> dict[str, float]:
        """Beside the verdict: presence of the mean reading; mean over pictures of presence, of the bits' errors, and of
        the correlations, centred and not (the papers' NC, whose threshold is 0.95 and whose null is not near 0)."""
        cells = self._squares(maps)
        numbers = {"presence": self._present(maps), "presence_each": float((cells - BLANK).abs().mean())}
        if self.payload == "bits":
            numbers["ber_each"] = float(((cells > BLANK) != key.message).float().mean())
        found, mark = maps.flatten(1), self._target(maps, key).flatten(1)
        centred = functional.cosine_similarity(found - BLANK, mark - BLANK)
        nc = functional.cosine_similarity(found, mark)
        each = {"correlation": centred, "nc": nc, "nc_share": (nc > 0.95).float()}
        return numbers | {name: float(values.mean()) for name, values in each.items()}

    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """The owner's extractor and messages of strangers: the pictures are read once. None for a logo.

        With an untrained extractor of their own they would read what no training put there: no test.
        """
        if self.payload == "image":
            return
        soft = self.extract(model, key, task)
        for _ in range(count):
            message = torch.from_numpy(rng.integers(0, 2, self.n_bits).astype(bool))
            yield replace(key, message=message), soft

    def forgeries(
        self, model: nn.Module, rng: np.random.Generator, task: Task, fit: Fit, tries: list[int]
    ) -> Iterator[tuple[str, int, Key]]:
        """An extractor of the claimant's own, trained to find his message in what the network gives and 1/2 in what it
        takes: nothing commits an owner to his. strength: its steps. A logo's null is fitted to the inputs."""
        key, device = self.keygen(model, rng, task), device_of(model)
        extractor, mark = self.extractor(key, device), self.mark(key).to(device)

        def loss(net: nn.Module, batch: Any) -> Tensor:
            images = task.inputs(batch).float()
            with torch.no_grad():
                given = seen(model(images))
            read, blank = net(torch.cat([given, images])).float().split(len(images))
            wanted = stretched(mark[None], read).expand_as(read)
            return functional.mse_loss(read, wanted) + (blank - BLANK).square().mean()

        fit = fit.using(optimizer="adamw", weight_decay=0.0, schedule="cosine", warmup=0.1, lr=self.lr)
        fit(extractor, task, loss=loss)
        for name, x in extractor.state_dict().items():
            key.secret[f"extractor.{name}"].copy_(x)
        if self.payload == "image":
            self._fit_null(key, task.answers(nn.Identity()))
        yield "trained", fit.train.epochs * max(1, task.size(task.train) // fit.train.batch_size), key


def untrained(seed: int) -> Extractor:
    """An extractor by seed; nobody else's draws change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Extractor()


def drawn(path: str | None) -> Tensor:
    """A logo [1, SIDE, SIDE] in [0, 1]: a picture file in grey, or ours, a ring with a bar through it."""
    if path is not None:
        picture = read_all([Path(path).read_bytes], [path], SIDE)[0]
        return torch.from_numpy(picture.mean(2, dtype=np.float32))[None] / 255
    at = torch.arange(SIDE) - (SIDE - 1) / 2
    far = (at[:, None].square() + at[None].square()).sqrt() / SIDE
    ring = (far > 0.28) & (far < 0.42)
    bar = ((at[:, None] - at[None]).abs() < SIDE / 10) & (far < 0.48)
    return (ring | bar).float()[None]
