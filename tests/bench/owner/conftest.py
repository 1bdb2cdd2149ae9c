"""A small network with a mark in it, made in a moment: nothing but the penalty trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bench


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(self.body(self.stem(x))).mean((2, 3)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return made.eval()


def trained(model: nn.Module, mark: bench.Watermark, steps: int = 60, wrapped: nn.Module | None = None) -> None:
    """The penalty alone, and what a method does after each step."""
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        loss = mark.penalty(wrapped or model) + 0.0 * sum(p.sum() for p in model.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mark.step(wrapped or model)


@pytest.fixture(scope="session")
def owned(tmp_path_factory) -> Path:
    """A folder with key.safetensors, marked.pth and plain.pth."""
    folder = tmp_path_factory.mktemp("owned")
    model = net()
    torch.save(model.state_dict(), folder / "plain.pth")
    mark = bench.Watermark("uchida", model, seed=1, n_bits=48, example=torch.randn(2, 3, 8, 8))
    trained(model, mark)
    mark.save(folder / "key.safetensors")
    torch.save(model.state_dict(), folder / "marked.pth")
    return folder


def permuted(state: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """The same function, the channels of each layer in another order."""
    draws, state = torch.Generator().manual_seed(seed), {k: v.clone() for k, v in state.items()}
    for here, after in (("stem", "body.0.weight"), ("body", "last.0.weight"), ("last", "fc.weight")):
        order = torch.randperm(len(state[f"{here}.0.weight"]), generator=draws)
        for name, tensor in state.items():
            if name.startswith(f"{here}.") and tensor.dim():
                state[name] = tensor[order]
        state[after] = state[after][:, order]
    return state
