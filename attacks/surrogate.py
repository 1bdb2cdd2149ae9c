"""Surrogates of an image-to-image service: fresh networks trained on its inputs and outputs (Zhang et al., TPAMI 2021,
Sec. V), with the losses, architectures and augmentation that decide whether they learn the mark as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import spec
from bench.data import changes
from bench.data.pixels import seen
from bench.errors import ConfigError, among, choice, within
from bench.models.discriminator import Discriminator
from bench.types import Fit, Snapshot, Task, TunedAttack, Victim

LOSSES = ("l2", "l1", "gan", "perceptual")
SHIFT = 4  # pixels that a crop moves a picture at most
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what VGG-16 takes: mean and deviation by channel
LAYERS = (3, 8)  # of VGG-16's features: relu1_2 and relu2_2 (Johnson et al. 2016)


@dataclass(frozen=True)
class Surrogate(TunedAttack):
    """Each of `surrogates`, NAME/LOSS, learns the victim's 8-bit outputs for the attacker's inputs.

    NAME is `same`, the victim's published architecture without what the method adds, or one of `students`, conf/model
    nodes. Losses, of pixels over 255: l2 and l1; gan, l2 and `weight` times a patch discriminator's least-squares loss;
    perceptual, l2 and `weight` times the squared difference of VGG-16's features, whose weights are a safetensors file
    of torchvision's (`vgg`) or random where there is none (as deep networks' features are without training; ours).
    augment: `none`, `flip` (half of the pairs mirrored) or `crop` (pairs shifted by up to 4 pixels, what is empty
    reflected); both pictures of a pair alike, after the service has seen the input. before: what the attacker does to
    the outputs first (bench.data.changes): none, jpeg, noise, blur or resize, with `strength`.
    A snapshot after the last epoch. clean: those of the surrogates that the judge trains on the unmarked host's outputs
    as well.
    """

    needs = ("outputs",)
    needs_data = True

    surrogates: list[str]
    students: dict[str, Any]
    epochs: int = within(1)
    weight: float = within(0)
    vgg: str | None = spec.file()
    augment: str = among("none", "flip", "crop")
    before: str
    strength: float = within(-255, 255)
    clean: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        changes.check("attack.before", self.before, self.strength)
        if not self.surrogates:
            raise ConfigError("attack.surrogates is empty: [same/l2]")
        for item in self.surrogates:
            name, _, loss = item.partition("/")
            choice("attack.surrogates", name, ("same", *self.students))
            choice("attack.surrogates", loss, LOSSES)
        if strange := [item for item in self.clean if item not in self.surrogates]:
            which = f"set attack.clean=[{self.surrogates[0]}], or []"
            raise ConfigError(f"attack.clean={strange[0]}: not one of attack.surrogates; {which}")

    @property
    def twin(self) -> Surrogate | None:
        return replace(self, surrogates=self.clean, clean=[]) if self.clean else None

    def fits(self, task: Task) -> None:
        if task.gives == "pictures":
            names = {item.partition("/")[0] for item in self.surrogates} - {"same"}
            for name in sorted(names):
                self._student(task, name, 0)
            if any(item.endswith("/perceptual") for item in self.surrogates):
                self._features(0)

    def skip(self, victim: Victim) -> str | None:
        return None if victim.task.gives == "pictures" else "the victim gives no pictures: attack=distill"

    def run(self, victim: Victim, rng: np.random.Generator, fit: Fit) -> Iterator[Snapshot]:
        task, seed = victim.task, int(rng.integers(2**62))

        def target(images: Tensor) -> Tensor:
            with torch.no_grad():
                given = seen(victim.model(images))
            return changes.processed(given, self.before, self.strength, None)

        for item in self.surrogates:
            name, _, distance = item.partition("/")
            model = victim.fresh(seed) if name == "same" else self._student(task, name, seed)
            distance, more = self._distance(distance, seed, task.example())

            def loss(both: nn.ModuleList, batch: Any, distance: Any = distance) -> Tensor:
                images = task.inputs(batch).float()
                images, wanted = self._augmented(images, target(images))
                return distance(both[0](images).float(), wanted)

            fit(nn.ModuleList([model, *more]), task, loss=loss, epochs=self.epochs, **self.tuning)
            suffix = "" if self.augment == "none" else f"/{self.augment}"
            yield Snapshot(f"{item}{suffix}", self.epochs, model)

    def _student(self, task: Task, name: str, seed: int) -> nn.Module:
        return task.build(spec.build(self.students[name], f"attack.students.{name}"), seed)

    def _augmented(self, images: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs [B, 3, H, W] each, changed alike."""
        both = torch.cat([images, wanted], 1)
        if self.augment == "flip":
            mirrored = torch.rand(len(both), 1, 1, 1, device=both.device) < 0.5
            both = torch.where(mirrored, both.flip(3), both)
        elif self.augment == "crop":
            padded = functional.pad(both, (SHIFT,) * 4, mode="reflect")
            top, left = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
            both = padded[:, :, top : top + both.shape[2], left : left + both.shape[3]]
        return both[:, :3], both[:, 3:]

    def _distance(self, name: str, seed: int, example: Tensor) -> tuple[Any, list[nn.Module]]:
        """A loss of (pictures, wanted ones), and what else is trained with it."""
        if name in ("l2", "l1"):
            measure = functional.mse_loss if name == "l2" else functional.l1_loss
            return (lambda made, wanted: measure(made / 255, wanted / 255)), []
        if name == "gan":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                judge = Discriminator().to(example.device)

            def adversarial(made: Tensor, wanted: Tensor) -> Tensor:
                told, lost = judge.losses(wanted, made)
                return functional.mse_loss(made / 255, wanted / 255) + told + self.weight * lost

            return adversarial, [judge]
        features = self._features(seed).to(example.device)
        mean, deviation = (torch.tensor(x, device=example.device).view(3, 1, 1) for x in IMAGENET)

        def perceptual(made: Tensor, wanted: Tensor) -> Tensor:
            total = functional.mse_loss(made / 255, wanted / 255)
            x, y = ((pictures / 255 - mean) / deviation for pictures in (made, wanted))
            for i, layer in enumerate(features):
                x, y = layer(x), layer(y)
                if i in LAYERS:
                    total = total + self.weight * functional.mse_loss(x, y)
            return total

        return perceptual, []

    def _features(self, seed: int) -> nn.Sequential:
        """The first layers of VGG-16, numbered as torchvision's `features` (all of it has 138 M weights to draw)."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        parts: list[nn.Module] = []
        for inside, outside in ((3, 64), (64, 64), (64, 128), (128, 128)):
            parts += [nn.MaxPool2d(2)] if (inside, outside) == (64, 128) else []
            parts += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
        features = nn.Sequential(*parts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in features:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
        if self.vgg is not None:
            try:
                state = {k.removeprefix("features."): x for k, x in load_file(self.vgg).items()}
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"attack.vgg={self.vgg} is no safetensors file: {error}") from error
            own = features.state_dict()
            if gone := [k for k in own if k not in state or state[k].shape != own[k].shape]:
                raise ConfigError(f"attack.vgg={self.vgg} is no VGG-16 of torchvision's: it lacks features.{gone[0]}")
            features.load_state_dict({k: state[k] for k in own})
        return features.eval().requires_grad_(False)
