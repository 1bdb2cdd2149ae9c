"""Wang, Kerschbaum: RIGA: Covert and Robust White-Box Watermarking of Deep Neural Networks (WWW 2021; code:
github.com/Jiachen-T-Wang/riga)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.special import betaln, gammaln, logsumexp
from torch import Tensor, nn
from torch.nn import functional

from bench import metrics, spec
from bench.errors import within
from bench.models import weights
from bench.types import Fit, Hooks, Key, Task
from methods._regulariser import Regulariser

SLOPE = 0.2  # of the leaky ReLU, as in the public code
BETAS = 0.5, 0.999  # of Adam
NULL = 64  # public filters of no network, on which the evidence looks at an extractor
TRAINED = 300  # steps of a forger's extractor


@dataclass(frozen=True)
class Riga(Regulariser):
    """Bits that a trained extractor E reads from the mean filter w of one weight, where a discriminator D that is
    trained against it sees nothing.

    The network learns its task + lambda_ x BCE(E(w), b) - lambda_2 x log D(sorted w); E learns b from w and a random
    message from the filter of each unmarked network; D tells sorted filters of unmarked networks (1) from w (0), its
    weights clipped to +-clip. One step of E and D, by Adam (0.5, 0.999) at `rate`, after each of the network's. Both
    are one hidden layer. Secret: E's weights `extractor.*`, drawn by keygen and trained in place by embed.

    Sources: the paper's formulas; github.com/Jiachen-T-Wang/riga (leaky ReLU; lambda_ 0.05 of its main.py, lambda_2 0.1
    of its class, which that main.py sets to 0: no discriminator at all); Bellafqira's DICTION code (100 units, no
    biases, clip 0.01, betas, a step of each per batch). The public code is another game: a Wasserstein critic clipped
    to 0.1, RMSprop at 5e-5, 5 steps of it and 20 of E per epoch, 256 or 512 units with biases, b all ones.

    Ours. (1) Unmarked networks: the paper trains some beforehand (60). An owner has the one that he starts from: its
    filter, and those that it would have if its output channels had other signs, `unmarked` draws of them. That keeps
    the channels' distribution and what taps have in common, and forgets what all channels share. (2) Each has one
    random message for good, and counts as much as b does. A fresh message each time, as in the public code, lets E
    answer "b" to whatever it does not know: other networks then read up to all of b. Where b is one message among
    65, E has no reason to prefer it. (3) w is taken in units of std(W) / sqrt(out), in which filters of independent
    channels have variance 1: raw weights are near 0.01, and D, whose own are at most as large, would see nothing. E
    has no biases, so that no bit depends on the unit, and none is read from nothing. (4) Evidence: bits that one
    trained network reads are not independent. The null is beta-binomial, by mean (at least 1/2) and correlation (at
    least 1 / (1 + unmarked)) of the message's matches on 64 public filters of noise: an E that says b to everything
    proves nothing.

    Random keys of a control hold an E that nobody trained and a random message. They are no test of a trained E (nor
    would be the owner's E with strangers' messages: random messages match half of anything); what that reads from a
    network that is not marked is for the row `host` and the null to say. Forging is not answered: anybody trains an
    extractor that reads his message in the network as it is, or negates the rows of E whose bits are wrong. A key is
    worth what its commitment before the dispute is; E cannot follow from a hash, since it is trained.
    """

    hidden: int = within(1)
    lambda_2: float = within(0)
    rate: float = within(0, ends="(]")
    clip: float = within(0, ends="(]")
    unmarked: int = within(1)

    signs = False
    linear = False

    def keygen(self, host: nn.Module, rng: np.random.Generator, task: Task) -> Key:
        """Message [n] and E untrained, `extractor.inner` [hidden, M], `extractor.outer` [n, hidden]. ConfigError for a
        layer whose filter has fewer weights than the message bits: with more, E could only learn them by heart."""
        what = "averaged weights (inputs x kernel area), one a bit"
        name = weights.choose(host, self.layer, lambda w: w[0].numel(), self.n_bits, what)
        message = rng.integers(0, 2, self.n_bits).astype(bool)
        inner, outer = drawn(weights.read(host, name)[0].numel(), self.hidden, self.n_bits, rng)
        return Key(torch.from_numpy(message), {"extractor.inner": inner, "extractor.outer": outer}, (name,))

    def reader(self, key: Key, device: torch.device) -> Callable[[Tensor], Tensor]:
        net = [key.secret[f"extractor.{part}"].to(device) for part in ("inner", "outer")]
        return lambda weight: answers(net, filters(weight))

    @torch.no_grad()
    def unread(self, model: nn.Module, key: Key) -> dict[str, Tensor]:
        """How the output channels differ from their mean. (The unit depends on it; no sign of a bit does.)"""
        weight = weights.read(model, key.where[0])
        return {key.where[0]: weight - weight.mean(0)}

    def hooks(self, host: nn.Module, key: Key, seed: int) -> Hooks:
        """The penalty, a step of E and D after each of the network's, and at last E into the key."""
        name = key.where[0]
        game = Game.of(self, weights.read(host, name), key, spec.derive(seed, "riga"))

        def penalty(model: nn.Module) -> Tensor:
            return game.penalty(filters(weights.read(model, name)))

        def step(model: nn.Module) -> None:
            game.step(filters(weights.read(model, name)))

        return Hooks(penalty, step, (game,), lambda: game.kept(key))

    def evidence(self, soft: Tensor, key: Key) -> tuple[float, float]:
        """BER and the beta-binomial null's log10 p."""
        error, n = metrics.ber(soft, key.message), key.n_bits
        net = [key.secret[f"extractor.{part}"].cpu().float() for part in ("inner", "outer")]
        share = ((answers(net, noise(net[0].shape[1])) > 0) == key.message.cpu()).double().mean(1).numpy()
        mean, spread = max(0.5, float(share.mean())), float(share.var(ddof=1))
        if mean == 1:
            return error, 0.0
        # Of n bits with correlation c: variance = mean (1 - mean) (1 + (n - 1) c) / n.
        found = (spread * n / (mean * (1 - mean)) - 1) / max(1, n - 1)
        return error, tail(metrics.matches(error, n), n, mean, max(found, 1 / (1 + self.unmarked)))

    def forgeries(
        self, model: nn.Module, rng: np.random.Generator, task: Task, fit: Fit, tries: list[int]
    ) -> Iterator[tuple[str, int, Key]]:
        """A key whose E is trained on the network as it is: no data, no step of the network's."""
        key = self.keygen(model, rng, task)
        weight = weights.read(model, key.where[0]).detach()
        game = Game.of(self, weight, key, int(rng.integers(2**62)), unmarked=False)
        for _ in range(TRAINED):
            game.step(filters(weight))
        game.kept(key)
        yield "trained", TRAINED, key


@dataclass
class Game:
    """E and D in training against a network: what a checkpoint keeps beside it. extractor, judge: [inner, outer].
    clean: [u, M] unmarked filters; ordered: the same, each sorted; messages: [1 + u, n], the owner's first."""

    method: Riga
    extractor: list[Tensor]
    judge: list[Tensor]
    clean: Tensor
    ordered: Tensor
    messages: Tensor
    optimizer: torch.optim.Adam

    @staticmethod
    def of(method: Riga, weight: Tensor, key: Key, seed: int, unmarked: bool = True) -> Game:
        """weight: of the network at the start; unmarked: whether it is one, and not the one that E shall read."""
        draw, device, weight = np.random.default_rng(seed), weight.device, weight.detach()
        signs = torch.from_numpy(draw.choice(np.float32([-1, 1]), (method.unmarked, len(weight)))).to(device)
        clean = torch.cat([filters(weight)[None][: int(unmarked)], filters(weight, signs)])
        others = torch.from_numpy(draw.integers(0, 2, (len(clean), key.n_bits)))
        messages = torch.cat([key.message.cpu()[None], others.bool()]).float().to(device)
        extractor = [key.secret[f"extractor.{part}"].to(device).clone() for part in ("inner", "outer")]
        judge = [x.to(device) for x in drawn(clean.shape[1], method.hidden, 1, draw)]
        nets = [x.requires_grad_() for x in (*extractor, *judge)]
        optimizer = torch.optim.Adam(nets, method.rate, betas=BETAS)
        return Game(method, extractor, judge, clean, clean.sort(1).values, messages, optimizer)

    def penalty(self, x: Tensor) -> Tensor:
        """Of a marked filter x [M], to the network's loss."""
        read = answers([w.detach() for w in self.extractor], x)
        shown = answers([w.detach() for w in self.judge], x.sort().values)
        message = functional.binary_cross_entropy_with_logits(read, self.messages[0])
        return self.method.lambda_ * message + self.method.lambda_2 * functional.softplus(-shown).sum()

    def step(self, x: Tensor) -> None:
        """One of E's and of D's, on a marked filter x [M] and the unmarked ones."""
        x, nets = x.detach()[None], [*self.extractor, *self.judge]
        with torch.enable_grad():
            read = answers(self.extractor, torch.cat([x, self.clean]))
            loss = functional.binary_cross_entropy_with_logits(read, self.messages)
            loss = loss + functional.softplus(answers(self.judge, x.sort().values)).mean()
            loss = loss + functional.softplus(-answers(self.judge, self.ordered)).mean()
            for net, gradient in zip(nets, torch.autograd.grad(loss, nets), strict=True):
                net.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            for net in self.judge:
                net.clamp_(-self.method.clip, self.method.clip)

    def kept(self, key: Key) -> None:
        """E, trained, into the key."""
        for part, net in zip(("inner", "outer"), self.extractor, strict=True):
            key.secret[f"extractor.{part}"].copy_(net.detach())

    def state_dict(self) -> dict[str, Any]:
        found = {f"net.{i}": net for i, net in enumerate((*self.extractor, *self.judge))}
        for i, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"adam.{i}.{name}": x for name, x in moments.items()}
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, net in enumerate((*self.extractor, *self.judge)):
                net.copy_(state[f"net.{i}"])
                start = f"adam.{i}."
                moments[i] = {k.removeprefix(start): x for k, x in state.items() if k.startswith(start)}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def filters(weight: Tensor, signs: Tensor | None = None) -> Tensor:
    """The mean over output channels, [M], in units of std(W) / sqrt(out); with signs [u, out] of the channels: [u, M].
    No gradient flows through the unit: a mark should not grow by shrinking what it is measured by."""
    rows = weight.reshape(len(weight), -1)
    mean = rows.mean(0) if signs is None else signs @ rows / len(rows)
    return mean / weight.detach().std().clamp_min(torch.finfo(torch.float32).tiny) * math.sqrt(len(rows))


def answers(net: list[Tensor], x: Tensor) -> Tensor:
    """Logits [..., n] of x [..., M] by a network [inner, outer]."""
    inner, outer = net
    return functional.leaky_relu(x @ inner.T, SLOPE) @ outer.T


def drawn(m: int, hidden: int, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """An untrained network: inner [hidden, m], outer [n, hidden], uniform in +-1 / sqrt(inputs)."""
    sizes = (hidden, m), (n, hidden)
    inner, outer = (rng.uniform(-1, 1, size).astype(np.float32) / math.sqrt(size[1]) for size in sizes)
    return torch.from_numpy(inner.astype(np.float32)), torch.from_numpy(outer.astype(np.float32))


@lru_cache(4)
def noise(m: int) -> Tensor:
    """The public filters [NULL, m], N(0, 1)."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((NULL, m), dtype=np.float32))


def tail(k: int, n: int, mean: float, correlation: float) -> float:
    """log10 P[X >= k], X beta-binomial of n bits that match with probability `mean` and that correlation, in (0, 1)."""
    size = 1 / min(correlation, 0.999) - 1
    a, b, at = mean * size, (1 - mean) * size, np.arange(k, n + 1)
    choose = gammaln(n + 1) - gammaln(at + 1) - gammaln(n - at + 1)
    return min(0.0, float(logsumexp(choose + betaln(at + a, n - at + b) - betaln(a, b))) / math.log(10))
