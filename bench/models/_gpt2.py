"""GPT-2 through transformers, imported where it is asked for: it takes seconds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from bench.errors import ConfigError
from bench.models.tokens import Vocabulary, read


class Reader(GPT2LMHeadModel):
    """transformers' network, called as bench.models.tokens says."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens, asked = read(tokens)
        return self.lm_head(self.transformer(tokens, use_cache=False).last_hidden_state[asked])


def constructed(model: Any, io: Vocabulary) -> nn.Module:
    """The network of a bench.models.Gpt2, each Conv1D an nn.Linear. Raises ConfigError for what cannot be had, or does
    not fit."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = GPT2Config.from_pretrained(model.name) if model.name else GPT2Config()
        if model.weights == "random":
            config.update({"vocab_size": io.tokens, **model.kwargs})
        elif not model.name or model.kwargs:
            raise ConfigError("model.weights=pretrained takes model.name=FOLDER, and no model.kwargs")
        if config.vocab_size != io.tokens:
            raise ConfigError(
                f"the network {model.title} has {config.vocab_size:,} tokens, the data {io.tokens:,}: take the "
                "network's own, data.tokenizer=FOLDER"
            )
        if config.n_positions < io.context:
            raise ConfigError(f"the network has {config.n_positions} positions: task.context={config.n_positions}")
        net = Reader(config) if model.weights == "random" else Reader.from_pretrained(model.name, config=config)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConfigError(f"model.name={model.name}: {why}") from error
    return plain(net)


def plain(net: nn.Module) -> nn.Module:
    """Every Conv1D (weights as (in, out)) as the nn.Linear that computes the same, in place."""
    for name, part in [*net.named_modules()]:
        if isinstance(part, Conv1D):
            linear = nn.Linear(*part.weight.shape)
            linear.weight, linear.bias = nn.Parameter(part.weight.detach().t().contiguous()), part.bias
            net.set_submodule(name, linear)
    return net
