"""The same with Hugging Face Accelerate (pip install accelerate): python docs/library/accelerate_loop.py"""

# %%
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bench

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

# %% Signs of weights at secret places, held through training: no penalty, but a step
mark = bench.Watermark("tondi", model, n_bits=64, spread=20)
accelerator = Accelerator(cpu=True)
loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 2e-3), loader)
for _ in range(3):
    for inputs, targets in loader:
        loss = nn.functional.cross_entropy(model(inputs), targets) + mark.penalty(model)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        mark.step(model)

# %%
accelerator.save(accelerator.unwrap_model(model).state_dict(), "marked.safetensors", safe_serialization=True)
mark.save("key.safetensors")
found = bench.verify("marked.safetensors", "key.safetensors")
print(found.sentence)
assert found
