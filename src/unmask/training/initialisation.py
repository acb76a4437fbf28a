"""The weights that training starts with: random ones, or those of a model given more tokens."""

import math
from dataclasses import replace

import torch
from torch import nn

from unmask.config import TransformerConfig
from unmask.model.transformer import Layer, Transformer

_SPREAD = 0.02


def random_transformer(config: TransformerConfig, generator: torch.Generator) -> Transformer:
    """Return a transformer with normal weights of standard deviation 0.02, biases of 0 and norms of 1.

    What a layer adds to the residual stream is scaled by ``1 / sqrt(2 layers)``, so that the stream's variance does
    not grow with depth (GPT-2, Radford et al. 2019).
    """
    transformer = Transformer(config)
    residual = _SPREAD / math.sqrt(2 * config.num_layers)
    ends = {
        linear
        for layer in transformer.layers
        if isinstance(layer, Layer)
        for linear in (layer.attention.o, layer.mlp.down)
    }
    with torch.no_grad():
        for module in transformer.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, residual if module in ends else _SPREAD, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
    return transformer


def widened(transformer: Transformer, vocab_size: int, *, untie: bool = False) -> Transformer:
    """Return a trainable copy in float32 with `vocab_size` tokens; new ones start as the mean of the others.

    `untie`: give the output matrix weights of its own, which start as the embeddings.
    """
    config = replace(
        transformer.config,
        vocab_size=vocab_size,
        tie_embeddings=transformer.config.tie_embeddings and not untie,
    )
    state = {name: tensor.float().clone() for name, tensor in transformer.state_dict().items()}
    if untie:
        state["head.weight"] = transformer.head_weight.float().clone()
    for name in state.keys() & {"embed.weight", "head.weight"}:
        table = state[name]
        state[name] = torch.cat([table, table.mean(0).expand(vocab_size - len(table), -1)])
    with torch.device("meta"):
        wide = Transformer(config)
    wide.load_state_dict(state, assign=True)
    return wide.requires_grad_(True).train()
