"""What regularising methods share: a penalty on one weight, and the three situations to train it in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import ConfigError, among, within
from bench.models import branches, lora, weights
from bench.types import Fit, Hooks, Key, Method, Task


@dataclass(frozen=True)
class Regulariser(Method):
    """Base of methods that read bit j as the sign of a differentiable logits(model, key)[j].

    Derived dataclasses give `reader`, the differentiable logits with all that depends on the key alone computed once.
    Situations after Uchida et al. 2017, Sec. 3.2: from scratch; fine-tuning the trained host; fine-tuning it on its own
    outputs, without labels. Ours: `lora`, fine-tuning it through a low-rank change (bench.models.lora), the mark being
    in the sum of weight and change, which is what is handed out. layer: name or glob of the weight that carries the
    mark, where it is not to be chosen.
    """

    # How the bits' cross-entropies are joined: Uchida's Eq. 3 adds them, NeuralMark's averages them.
    reduction: ClassVar[str] = "mean"
    tunable = True
    signs = True

    n_bits: int = within(1)
    lambda_: float = within(0)
    situation: str = among("scratch", "finetune", "distill", "lora")
    layer: str | None

    @property
    def from_scratch(self) -> bool:
        return self.situation == "scratch"

    @property
    def trains_on(self) -> str:
        return {"finetune": "labels", "distill": "outputs", "lora": lora.TRAINS}.get(self.situation, "")

    def again(self, factor: float) -> Regulariser:
        return replace(self, situation="finetune", lambda_=factor * self.lambda_)

    def extend(self, model: nn.Module, task: Task, seed: int) -> nn.Module:
        """Nothing is added; ConfigError for a change that would not reach the marked weight."""
        if self.situation == "lora":
            names = lora.adapted(model)
            if not names:
                raise ConfigError(
                    "method.situation=lora: no layer is adapted; model.lora={rank: , alpha: , targets: []}"
                )
            if self.layer is None or not any(fnmatchcase(name, self.layer) for name in names):
                raise ConfigError(f"method.situation=lora marks an adapted layer: method.layer={names[-1]}")
        return model

    def reader(self, key: Key, device: torch.device) -> Any:
        """A function of the marked weight that gives logits [n]; the key's tensors already on the device."""
        raise NotImplementedError

    def embedding_loss(self, y: Tensor, truth: Tensor) -> Tensor:
        """What lambda multiplies, a scalar, of what `reader` gives for the marked weight and the bits [n] as 0 or 1."""
        return functional.binary_cross_entropy_with_logits(y, truth, reduction=self.reduction)

    def logits(self, model: nn.Module, key: Key) -> Tensor:
        weight = weights.read(model, key.where[0])
        return self.reader(key, weight.device)(weight)

    @property
    def harness_only(self) -> str:
        return {
            "lora": "situation=lora trains a change of other layers",
            "distill": "situation=distill has no labels",
        }.get(self.situation, "")

    def hooks(self, host: nn.Module, key: Key, seed: int) -> Hooks:
        """The penalty: lambda times the embedding loss."""
        device, name = weights.read(host, key.where[0]).device, key.where[0]
        read, truth = self.reader(key, device), key.message.to(device, torch.float32)

        def penalty(model: nn.Module) -> Tensor:
            return self.lambda_ * self.embedding_loss(read(weights.read(model, name)), truth)

        return Hooks(penalty)

    def embed(self, host: nn.Module, key: Key, task: Task, fit: Fit) -> nn.Module:
        """Train `host` in place with the task's loss plus the penalty."""
        made = self.hooks(host, key, fit.seed)
        host = self.train(host, task, fit, penalty=made.penalty, step=made.step, state=made.state)
        made.done()
        return host

    def train(self, host: nn.Module, task: Task, fit: Fit, **how: Any) -> nn.Module:
        """`fit` on the labels, all weights or a change of low rank, or on the host's own outputs for `distill`."""
        if self.situation == "lora":
            return lora.tuned(host, task, fit, **how)
        if self.situation == "distill":
            how["loss"] = branches.own_outputs(host, task)
        return fit(host, task, **how)
