"""Key files: safetensors that anybody can read a mark with, given the model's weights and numpy."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.types import Key


def save_key(key: Key, path: Path, method: str, version: int) -> None:
    """message (uint8 [n]) and the method's secrets; metadata: method, where (JSON list of names), version."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in key.secret.items()}
    tensors["message"] = key.message.cpu().to(torch.uint8)
    save_file(tensors, path, {"method": method, "where": json.dumps(list(key.where)), "version": str(version)})
    _sort(path)


def _sort(path: Path) -> None:
    """Put the names in a file's header in order. safetensors writes metadata as its hash table has them: the same key
    would have other bytes each time."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


def load_key(path: Path) -> Key:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        where = json.loads(file.metadata()["where"])
    return Key(tensors.pop("message").bool(), tensors, tuple(where))
