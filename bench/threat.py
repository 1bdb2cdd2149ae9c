"""What an attacker is handed of a victim: what its configuration says that it knows, and nothing beyond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bench.data.pixels import seen
from bench.experiment import Experiment
from bench.machine import device_of
from bench.types import Key, Victim


class Service(nn.Module):
    """A network behind its outputs: no weights, buffers, modules or gradients. It gives pictures, rounded to 8 bits,
    logits [B, C] (or [B, C, H, W], of each pixel) or, where `labels` is said, the class alone, int64 [B].

    PermissionError for whoever asks for its parameters.
    """

    def __init__(self, model: nn.Module, gives: str):
        super().__init__()
        self.register_buffer("place", torch.empty(0, device=device_of(model)))  # where it is to be called
        shown = {"pictures": seen, "labels": lambda logits: logits.argmax(1)}.get(gives, lambda logits: logits)

        def ask(images: Tensor) -> Tensor:
            with torch.no_grad():
                return shown(model(images))

        self.ask = ask  # a closure: as an attribute the network would be a part of this one

    def forward(self, images: Tensor) -> Tensor:
        return self.ask(images)

    def _closed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise PermissionError("the attack knows what the network gives, not its parameters: attack.knows")

    parameters = named_parameters = state_dict = load_state_dict = get_parameter = _closed


def stolen(x: Experiment, model: nn.Module, key: Key | None, host: Callable[[], nn.Module] | None = None) -> Victim:
    """What the attacker of a configuration is handed of `victim`, and nothing beyond what it `knows`.

    host: opens the network that the owner started from, if the method starts from one: public, as pretrained ones are.
    """
    knows = set(x.attack.knows)
    public = "host" in knows and x.method.marks and x.method.trains_on
    privileged = {"layer", "key"} & knows
    gives = "labels" if "outputs" not in knows and x.task.gives in ("classes", "maps", "text") else x.task.gives
    return Victim(
        model if x.method.released and "weights" in knows else Service(model, gives),
        x.method,
        x.task.view("attacker" if x.attack.data == "attacker" else "outsider"),
        other=x.other.view("attacker") if x.other else None,
        fresh=lambda seed: x.task.build(x.model, seed),
        host=host if public else None,
        where=key.where if key and privileged else None,
        key=key if "key" in knows else None,
    )


def out_of_reach(x: Experiment) -> str:
    """Why an attack that opens the network cannot be made on a victim that is not released, or an empty string."""
    claimed = x.method.access == "outputs" and x.attack.goal == "forge"  # a claim needs what is read, no more
    if x.method.released or claimed or "weights" not in x.attack.needs:
        return ""
    service = f"{x.method_name}'s victim is a service: method.absorbed=true releases it"
    return f"n/a: the attack needs the weights, and {service}"
