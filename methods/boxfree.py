"""Zhang, Chen, et al.: Model watermarking for image processing networks (AAAI 2020); Deep model intellectual property
protection via deep watermarking (TPAMI 2021).

A barrier after an image-to-image network hides one mark in every picture it gives; whoever trains a surrogate on its
inputs and outputs learns the mark with the task, and the owner's extractor reads it from the surrogate's pictures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import branches, networks, spec
from bench.pictures import seen
from bench.train import Fit
from bench.types import ConfigError, Key, Method, Task
from methods.barrier import BLANK, Barrier, Discriminator, Extractor, stretched

SIDE = 32  # of a logo
CHUNK = 256  # pictures read at once
UNREAD = 0.25  # squared error of a reading that says nothing
VISIBLE = 12.0  # grey levels by which a square is lighter or darker before training


@dataclass(frozen=True)
class Boxfree(Method):
    """The mark is in the pictures: extraction sees a suspect's outputs for held-out inputs and nothing of its weights.

    payload `bits`: n_bits as squares of a grid, drawn anew for every training picture, so that the extractor reads what
    is there and not what it knows; the message that is deployed appears in no training. A bit is the mean of its square
    over all pictures, against 1/2; squares that stay nearer to 1/2 than `presence` on average carry no message at all
    (every bit undecided). The message is independent of all that decides a suspect's reading: the binomial null holds.
    payload `image` (the papers'): one fixed logo (a file, or one of ours), one bit: it is there. Evidence is the
    correlation of logo and reading, both less 1/2, mean over pictures. Null: Student's t predictive distribution,
    fitted to that of the owner's unmarked outputs on its validation pictures, a suspect counted as one picture, for
    errors on pictures are not independent. The papers' uncentred correlation (nc) calls a blank reading similar.

    Stages, epochs of the owner's data each. Initial: barrier, extractor and patch discriminator together; `fidelity`
    times the squared change (pixels over 255), as far as the mark is read already; `gan` times the adversarial loss;
    squared errors of the reading of marked pictures, twice of inputs' and unmarked outputs', and between pictures that
    carry the same mark. Adversarial: simulated surrogates (`surrogate`, a conf/model node, each with a message of its
    own) learn barrier outputs, and the extractor alone is tuned on theirs as well. absorbed: the network then learns
    the barrier's outputs itself, the extractor frozen, and is released in its place; else it stays behind the barrier,
    as a service.

    Not as there: networks and schedule a hundredth (a U-Net of 3 levels, an extractor of 42 k weights), bits, random
    messages, a start from squares that anybody sees, losses relative to the message's, no perceptual term (0 in the released code too), and the absorbed
    network learns from the barrier, not together with it. Ambiguity is not answered: anybody can train an extractor
    that finds a message of his own in the same pictures.

    Secret: the extractor's weights, `extractor.*`; for a logo `mark` [1, S, S] and `null` [3] (mean, standard
    deviation, count). keygen draws them untrained; embed trains them in place.
    """

    n_bits: int
    payload: str
    logo: str | None
    presence: float
    absorbed: bool
    adversarial: bool
    width: int
    depth: int
    fidelity: float
    gan: float
    epochs: int
    lr: float
    surrogate: Any
    surrogates: int
    surrogate_epochs: int
    tune_epochs: int
    tune_lr: float
    absorb_epochs: int

    access = "outputs"

    def __post_init__(self) -> None:
        spec.choice("method.payload", self.payload, ("bits", "image"))
        for name in ("n_bits", "width", "depth", "epochs", "surrogates", "surrogate_epochs", "tune_epochs"):
            spec.at_least(f"method.{name}", getattr(self, name), 1)
        spec.at_least("method.absorb_epochs", self.absorb_epochs, 1)
        if math.isqrt(self.n_bits) ** 2 != self.n_bits:
            raise ConfigError(f"method.n_bits={self.n_bits}: bits fill a square grid: 16, 25, 36, 49, 64, ...")
        if min(self.fidelity, self.gan) < 0 or min(self.lr, self.tune_lr) <= 0 or not 0 <= self.presence < 0.5:
            raise ConfigError("method: fidelity and gan at least 0, lr and tune_lr above 0, presence in [0, 0.5)")
        if self.logo is not None and not Path(self.logo).is_file():
            raise ConfigError(f"method.logo={self.logo}: no such file")
        if not isinstance(self.surrogate, dict):
            raise ConfigError(f"method.surrogate takes a model: model@method.surrogate={self.surrogate}")

    @property
    def released(self) -> bool:
        return self.absorbed

    def extend(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        """`model` behind an untrained barrier. Raises ConfigError where no pictures come out, or too small ones."""
        if not networks.gives_pictures(model, task):
            raise ConfigError("method=boxfree marks pictures: task=restoration")
        side, size = task.example().shape[-1], self._size()
        if self.payload == "bits" and side % size:
            raise ConfigError(f"method.n_bits={self.n_bits}: {size} squares do not fit a side of {side} pixels")
        if side % 2**self.depth or side % 2:
            raise ConfigError(f"method.depth={self.depth}: pictures of {side} pixels cannot be halved so often")
        return model if self.absorbed else branches.attach(model, "", self._barrier(model, seed))

    def _size(self) -> int:
        return math.isqrt(self.n_bits) if self.payload == "bits" else SIDE

    def _barrier(self, model: nn.Module, seed: int) -> Barrier:
        torch.manual_seed(seed)
        return Barrier(self.width, self.depth, self._size()).to(next(model.parameters()).device)

    def keygen(self, host: nn.Module, rng: np.random.Generator) -> Key:
        """Message [n] (a logo: one bit, true) and an untrained extractor."""
        bits = rng.integers(0, 2, self.n_bits).astype(bool) if self.payload == "bits" else np.ones(1, bool)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            secret = {f"extractor.{name}": x for name, x in Extractor().state_dict().items()}
        if self.payload == "image":
            secret |= {"mark": drawn(self.logo), "null": torch.tensor([0.0, 1.0, 2.0])}
        return Key(torch.from_numpy(bits), secret, ())

    def mark(self, key: Key) -> Tensor:
        """What the barrier is to hide, [1, S, S] in [0, 1]."""
        if self.payload == "image":
            return key.secret["mark"]
        return key.message.float().view(1, self._size(), self._size())

    def extractor(self, key: Key, device: torch.device) -> Extractor:
        """The key's, in evaluation mode."""
        net = Extractor()
        start = "extractor."
        net.load_state_dict({k.removeprefix(start): x for k, x in key.secret.items() if k.startswith(start)})
        return net.to(device).eval()

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Train barrier and extractor for `host`, which stays as it is unless it absorbs the barrier."""
        if fit.train.epochs == 0:
            return host
        device = next(host.parameters()).device
        clean, barrier = copy.deepcopy(host).eval().requires_grad_(False), branches.branch(host)
        if barrier is None:
            barrier = self._barrier(host, spec.derive(fit.seed, "barrier"))
        else:
            branches.detach(clean)
        extractor, mark = self.extractor(key, device), self.mark(key).to(device)
        fixed = mark if self.payload == "image" else None
        stages = Stages(self, clean, barrier, extractor, task, fit, fixed)
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
            key.secret["null"].copy_(self._null(clean, key, task))
        return host.eval().requires_grad_(True)

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
            vote = torch.stack([(1 + self._correlation(maps, key).mean()) / 2])
        else:
            vote = functional.adaptive_avg_pool2d(maps, self._size()).mean(0).reshape(-1)
        # Readings are no probabilities: a square may overshoot.
        vote = vote.nan_to_num(BLANK).clamp(0, 1)
        present = (functional.adaptive_avg_pool2d(maps.mean(0), self._cells()) - BLANK).abs().mean() >= self.presence
        return vote if present else torch.full_like(vote, BLANK)

    def _cells(self) -> int:
        return self._size() if self.payload == "bits" else 8

    def evidence(self, soft: Tensor, key: Key) -> tuple[float, float]:
        error, log10_p = super().evidence(soft, key)
        if self.payload == "image":
            from scipy.stats import t

            mean, deviation, count = key.secret["null"].tolist()
            score = (2 * float(soft[0]) - 1 - mean) / (max(deviation, 1e-3) * math.sqrt(1 + 1 / count))
            log10_p = min(0.0, float(t.logsf(score, count - 1)) / math.log(10))
        return error, log10_p

    def _correlation(self, maps: Tensor, key: Key) -> Tensor:
        """Of each reading with the mark, both less 1/2: [N] in [-1, 1]."""
        return functional.cosine_similarity((maps - BLANK).flatten(1), (self._target(maps, key) - BLANK).flatten(1))

    def _target(self, maps: Tensor, key: Key) -> Tensor:
        return stretched(self.mark(key).cpu()[None], maps)

    def _null(self, clean: nn.Module, key: Key, task: Task) -> Tensor:
        found = self._correlation(self.read(task.answers(clean), key), key)
        return torch.stack([found.mean(), found.std(), torch.tensor(float(len(found)))])

    def readings(self, maps: Tensor, key: Key) -> dict[str, float]:
        """Beside the verdict: presence of the mean reading; mean over pictures of presence, of the bits' errors, and of
        the correlations, centred and not (the papers' NC, whose threshold is 0.95 and whose null is not near 0)."""
        cells = functional.adaptive_avg_pool2d(maps, self._cells()).flatten(1)
        numbers = {"presence": float((cells.mean(0) - BLANK).abs().mean())}
        numbers["presence_each"] = float((cells - BLANK).abs().mean())
        if self.payload == "bits":
            numbers["ber_each"] = float(((cells > BLANK) != key.message).float().mean())
        nc = functional.cosine_similarity(maps.flatten(1), self._target(maps, key).flatten(1))
        share = float((nc > 0.95).float().mean())
        return numbers | {
            "correlation": float(self._correlation(maps, key).mean()),
            "nc": float(nc.mean()),
            "nc_share": share,
        }

    def trials(
        self, model: nn.Module, key: Key, other: nn.Module, rng: np.random.Generator, count: int, task: Task
    ) -> Iterator[tuple[Key, Tensor]]:
        """The owner's extractor with messages of strangers (a logo: with random grids): the pictures are read once.

        An untrained extractor would be no test: it reads nothing anywhere.
        """
        maps = self.read(task.answers(model), key)
        for _ in range(count):
            drawn = self.keygen(other, rng)
            secret = dict(key.secret)
            if self.payload == "image":
                cells = torch.from_numpy(rng.integers(0, 2, (1, 8, 8)).astype(np.float32))
                secret["mark"] = functional.interpolate(cells[None], (SIDE, SIDE))[0]
            guess = replace(drawn, secret=secret)
            yield guess, self.soft(maps, guess)


class Stages:
    """What the training stages share; see Boxfree."""

    def __init__(
        self,
        method: Boxfree,
        clean: nn.Module,
        barrier: Barrier,
        extractor: Extractor,
        task: Task,
        fit: Fit,
        mark: Tensor | None,
    ):
        self.method, self.clean, self.barrier, self.extractor = method, clean, barrier, extractor
        self.task, self.fit, self.mark = task, fit.using(optimizer="adamw", weight_decay=0.0, schedule="cosine"), mark

    def marks(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """Random grids, or the logo: [count, 1, S, S]."""
        if self.mark is not None:
            return self.mark.expand(count, *self.mark.shape)
        device, size = self.barrier.mark.device, self.method._size()
        if rng is not None:
            return torch.randint(0, 2, (count, 1, size, size), generator=rng).float().to(device)
        return torch.randint(0, 2, (count, 1, size, size), device=device).float()

    def unmarked(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return seen(self.clean(images))

    def hidden(self, marks: Tensor) -> Callable[[Tensor], Tensor]:
        """The service with one mark, as a function of images."""

        def answer(images: Tensor) -> Tensor:
            outputs = self.clean(images)
            return outputs + self.barrier.change(outputs, marks.expand(len(images), *marks.shape[1:]))

        return answer

    def initial(self) -> None:
        """Barrier, extractor, discriminator."""
        method, pair = self.method, nn.ModuleList([self.barrier, self.extractor])
        judge = Discriminator().to(self.barrier.mark.device) if method.gan else None
        if judge is not None:
            pair.append(judge)
        # From a barrier that changes nothing the extractor learns to say so, and many runs stay there: begin with
        # squares that anybody sees.
        nn.init.constant_(self.barrier.direct.weight, VISIBLE / 127.5)
        unread = torch.full((), UNREAD, device=self.barrier.mark.device)

        def loss(_: nn.Module, batch: Any) -> Tensor:
            nonlocal unread
            images = self.task.inputs(batch).float()
            outputs = self.unmarked(images)
            half = (len(images) + 1) // 2
            marks = self.marks(half).repeat(2, 1, 1, 1)[: len(images)]  # each on two pictures
            change = self.barrier.change(outputs, marks).float()
            made = (outputs + change).clamp(0, 255)
            stored = made + (made.round() - made).detach()
            found = self.extractor(torch.cat([stored, images[:half], outputs[half:]])).float()
            read, blank = found[: len(images)], found[len(images) :]
            error = functional.mse_loss(read, stretched(marks, read))
            unread = 0.95 * unread + 0.05 * error.detach()
            total = error + 2 * (blank - BLANK).square().mean()
            total = total + functional.mse_loss(read[: len(images) - half], read[half:])
            # A change that nobody can read yet must not be trained away.
            due = (1 - unread / UNREAD).clamp(0, 1)
            total = total + due * method.fidelity * (change / 255).square().mean()
            if judge is not None:
                told, lost = judge.losses(outputs, made)
                total = total + told + method.gan * lost
            return total

        self.fit.using(lr=method.lr, epochs=method.epochs, warmup=0.1)(pair, self.task, loss=loss)
        self.barrier.eval().requires_grad_(False)

    def adversarial(self) -> None:
        """Simulated surrogates, then the extractor alone."""
        method, fit, simulated = self.method, self.fit, []
        rng = torch.Generator().manual_seed(spec.derive(fit.seed, "simulated messages"))
        for i in range(method.surrogates):
            seed = spec.derive(fit.seed, "simulated", i)
            student = self.task.build(spec.build(method.surrogate, "method.surrogate"), seed)
            marks = self.marks(1, rng)
            learn = replace(fit, seed=seed).using(lr=method.lr, epochs=method.surrogate_epochs)

            def loss(model: nn.Module, batch: Any, marks: Tensor = marks) -> Tensor:
                return self.task.distill(model, self.hidden(marks), batch)

            simulated.append((learn(student, self.task, loss=loss).eval().requires_grad_(False), marks))

        def loss(extractor: nn.Module, batch: Any) -> Tensor:
            images = self.task.inputs(batch).float()
            outputs, marks = self.unmarked(images), self.marks(len(images))
            with torch.no_grad():
                stored = [seen(outputs + self.barrier.change(outputs, marks))]
                stored += [seen(student(images)) for student, _ in simulated]
            wanted = [marks, *(x.expand(len(images), *x.shape[1:]) for _, x in simulated)]
            found = extractor(torch.cat([*stored, images, outputs])).float().split(len(images))
            read = [functional.mse_loss(x, stretched(y, x)) for x, y in zip(found, wanted, strict=False)]
            blank = torch.cat(found[len(wanted) :])
            return sum(read) / len(read) + 2 * (blank - BLANK).square().mean()

        fit.using(lr=method.tune_lr, epochs=method.tune_epochs)(self.extractor, self.task, loss=loss)
        self.extractor.requires_grad_(False)

    def absorb(self, model: nn.Module) -> nn.Module:
        """`model`, trained to give the barrier's outputs and, read by the extractor as it is, the message."""
        marks = self.barrier.mark[None]
        service = self.hidden(marks)
        extractor = self.extractor.eval().requires_grad_(False)

        def loss(net: nn.Module, batch: Any) -> Tensor:
            images = self.task.inputs(batch).float()
            with torch.no_grad():
                target = seen(service(images))
            made = net(images).float()
            found = extractor(made + (made.round() - made).detach()).float()
            read = functional.mse_loss(found, stretched(marks, found).expand_as(found))
            return self.method.fidelity * ((made - target) / 255).square().mean() + read

        how = {"epochs": self.method.absorb_epochs, "schedule": "cosine"}
        return self.fit.using(lr=self.fit.train.lr)(model, self.task, loss=loss, **how)


def drawn(path: str | None) -> Tensor:
    """A logo [1, SIDE, SIDE] in [0, 1]: a picture file in grey, or ours, a ring with a bar through it."""
    if path is not None:
        from bench.decoding import read_all

        picture = read_all([Path(path).read_bytes], [path], SIDE)[0]
        return torch.from_numpy(picture.mean(2, dtype=np.float32))[None] / 255
    at = torch.arange(SIDE) - (SIDE - 1) / 2
    far = (at[:, None].square() + at[None].square()).sqrt() / SIDE
    ring = (far > 0.28) & (far < 0.42)
    bar = ((at[:, None] - at[None]).abs() < SIDE / 10) & (far < 0.48)
    return (ring | bar).float()[None]
