"""A network of your own, your own loop, a mark in it: python docs/library/own_loop.py"""

# %% A network and data
import torch
from sklearn.datasets import load_digits
from torch import nn

import bench

digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
torch.manual_seed(0)


def block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU())


model = nn.Sequential(block(1, 24), nn.MaxPool2d(2), block(24, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten())
model.append(nn.Linear(48, 10))

# %% The mark: before training, for substituted weights are set now. Without seed= the key is nobody's to guess.
mark = bench.Watermark("uchida", model, n_bits=64, lambda_=0.05)

# %% Your own loop, with two more calls
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for _ in range(6):
    for batch in torch.randperm(len(images)).split(64):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch]) + mark.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mark.step(model)

# %% Keep the key where only you can read it; release the network
model.eval()
mark.save("key.safetensors")
torch.save(model.state_dict(), "marked.pth")
print(mark.verify(model).sentence)

# %% Later, somebody's file: channels in another order, in bfloat16, wrapped
order = torch.randperm(48)
stolen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for name, tensor in stolen.items():
    if name.startswith("2.") and tensor.dim():
        stolen[name] = tensor[order]
stolen["5.weight"] = stolen["5.weight"][:, order]
torch.save({"model": {f"module.{name}": tensor.bfloat16() for name, tensor in stolen.items()}}, "suspect.pth")

found = bench.verify("suspect.pth", "key.safetensors", reference="marked.pth")
print(found.sentence)
print(*found.said, sep="\n")
assert found
