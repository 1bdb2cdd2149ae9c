"""Networks that continue text: a small GPT of our own, and GPT-2 as transformers has it.

All take tokens int64 [B, T] and give logits [N, V] of the next token, row after row, at the N positions where they are
asked; a token t that is context alone is written as -1 - t (`context_only`). So padding, prompts and the vocabulary's
product with them cost nothing, and outputs are those of a classifier of N examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import spec
from bench.errors import ConfigError, among, within
from bench.models import anatomy, base, lora
from bench.models.tokens import Vocabulary, read

NEEDED = "needs transformers: pip install 'watermark-bench[text]'"


@dataclass(frozen=True)
class Language(base.Network):
    """What networks of text share. lora: rank, alpha and targets (last parts of modules' names) of the low-rank change
    that method.situation=lora trains in place of all weights (bench.models.lora); None: there is none."""

    gives = "text"

    lora: dict[str, Any] | None

    def identity(self) -> dict[str, Any]:
        return {k: v for k, v in super().identity().items() if k != "lora" or v is not None}

    def head(self, net: nn.Module, io: Any) -> str:
        return "lm_head"

    def build(self, io: Vocabulary, seed: int) -> nn.Module:
        """A freshly initialised (or checkpointed) network on the CPU. ConfigError for a vocabulary or a context that
        are not its own."""
        torch.manual_seed(seed)
        net = self.construct(io)
        if self.checkpoint:
            base.load(net, self.checkpoint, "")
        anatomy.examine(net, torch.zeros(2, min(io.context, 8), dtype=torch.int64), self.heads(net, io))
        if self.lora is not None:
            lora.noted(net, self.lora)
        return net


@dataclass(frozen=True)
class Nano(Language):
    """A GPT of our own (`Gpt`). width: of the residual stream; layers; heads; dropout: of the residual branches."""

    width: int = within(1)
    layers: int = within(1)
    heads_: int = within(1)
    dropout: float = within(0, 0.9)

    def construct(self, io: Vocabulary) -> nn.Module:
        if self.width % self.heads_:
            raise ConfigError(f"model.width={self.width} is no multiple of model.heads_={self.heads_}")
        return Gpt(io, self.width, self.layers, self.heads_, self.dropout)


@dataclass(frozen=True)
class Gpt2(Language):
    """GPT-2 of transformers. name: a folder that save_pretrained made, or a name on the Hugging Face hub, whose
    configuration is taken; weights: pretrained, theirs, or random. kwargs: fields of its GPT2Config that are otherwise
    (with weights=random; name=null: nothing but these)."""

    name: str | None
    weights: str = among("pretrained", "random")
    kwargs: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """A folder by what is in it."""
        files = sorted(Path(self.name or "").glob("*.safetensors")) if self.name else []
        files += [p for p in [Path(self.name or "") / "config.json"] if self.name and p.is_file()]
        told = {"name": [spec.sha256(p) for p in files]} if files else {}
        return super().identity() | told

    @property
    def title(self) -> str:
        return self.label or (self.name or "gpt2").rstrip("/").rpartition("/")[2]

    def construct(self, io: Vocabulary) -> nn.Module:
        try:
            from bench.models import _gpt2
        except ImportError as error:
            raise ConfigError(f"model=gpt2 {NEEDED}") from error
        return _gpt2.constructed(self, io)


class Attention(nn.Module):
    """Causal attention, queries, keys and values in one layer; modules as GPT-2 calls them."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, 2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dropout(self.c_proj(y.transpose(1, 2).reshape(b, t, width)))


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(functional.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention and MLP, each on the normalised stream, added to it."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.ln_2, self.mlp = nn.LayerNorm(width), Mlp(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """GPT-2's architecture (Radford et al. 2019) and start, as nanoGPT writes it: learned positions, norm first, the
    head tied to the embedding. Ours: plain nn.Linear, logits where they are asked for alone."""

    def __init__(self, io: Vocabulary, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(io.tokens, width), nn.Embedding(io.context, width)
        self.h = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, io.tokens, bias=False)
        for name, layer in self.named_modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                deep = math.sqrt(2 * layers) if name.endswith("c_proj") else 1.0
                nn.init.normal_(layer.weight, std=0.02 / deep)
                if getattr(layer, "bias", None) is not None:
                    nn.init.zeros_(layer.bias)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        tokens, asked = read(tokens)
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x)[asked])
