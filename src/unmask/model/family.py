"""A model family as data: what its config.json means, and what its files call our tensors."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from unmask.config import TransformerConfig
from unmask.errors import CheckpointError
from unmask.model.hub_config import HubConfig

LLAMA_NAMES: Mapping[str, str] = {
    "embed": "embed_tokens",
    "norm": "norm",
    "layers.{i}.attention_norm": "layers.{i}.input_layernorm",
    "layers.{i}.mlp_norm": "layers.{i}.post_attention_layernorm",
    "layers.{i}.attention.q": "layers.{i}.self_attn.q_proj",
    "layers.{i}.attention.k": "layers.{i}.self_attn.k_proj",
    "layers.{i}.attention.v": "layers.{i}.self_attn.v_proj",
    "layers.{i}.attention.o": "layers.{i}.self_attn.o_proj",
    "layers.{i}.attention.q_norm": "layers.{i}.self_attn.q_norm",
    "layers.{i}.attention.k_norm": "layers.{i}.self_attn.k_norm",
    "layers.{i}.mlp.gate": "layers.{i}.mlp.gate_proj",
    "layers.{i}.mlp.up": "layers.{i}.mlp.up_proj",
    "layers.{i}.mlp.down": "layers.{i}.mlp.down_proj",
}
"""Our module -> the hub's, below the prefix; the Llama lineage agrees on all of them."""

GGUF_NAMES: Mapping[str, str] = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "layers.{i}.attention_norm": "blk.{i}.attn_norm",
    "layers.{i}.mlp_norm": "blk.{i}.ffn_norm",
    "layers.{i}.attention.q": "blk.{i}.attn_q",
    "layers.{i}.attention.k": "blk.{i}.attn_k",
    "layers.{i}.attention.v": "blk.{i}.attn_v",
    "layers.{i}.attention.o": "blk.{i}.attn_output",
    "layers.{i}.attention.q_norm": "blk.{i}.attn_q_norm",
    "layers.{i}.attention.k_norm": "blk.{i}.attn_k_norm",
    "layers.{i}.mlp.gate": "blk.{i}.ffn_gate",
    "layers.{i}.mlp.up": "blk.{i}.ffn_up",
    "layers.{i}.mlp.down": "blk.{i}.ffn_down",
}
"""Our module -> llama.cpp's."""


@dataclass(frozen=True)
class Placement:
    """Where a file keeps the backbone (a prefix) and the output matrix (a module)."""

    prefix: str
    head: str

    def hub_name(self, name: str) -> str:
        """Return what this file calls our tensor `name`."""
        module, _, kind = name.rpartition(".")
        return f"{self.head if module == 'head' else self.prefix + _renamed(module, LLAMA_NAMES)}.{kind}"


PLAIN = Placement("model.", "lm_head")
BARE = Placement("", "lm_head")


@dataclass(frozen=True)
class Family:
    """One model family of the hub.

    `model_types`: the `model_type`s of its config.json. `defaults`: what transformers assumes for a key left out.
    `traits`: the fields of TransformerConfig in which it differs from plain Llama, given its config.
    `query_scale`: it has the Llama-4 query temperature. `wrapped_in`: multimodal model types whose `text_config` it may
    be. `placements`: how its files may be laid out, the one we write first. `ignored`: tensors that are not the text
    model's. `gguf`: llama.cpp's architecture -> model_type; `gguf_turned`: there, rows of q and k are interleaved.
    """

    name: str
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any]
    traits: Callable[[HubConfig], Mapping[str, Any]] = field(default=lambda config: {})
    query_scale: bool = False
    wrapped_in: tuple[str, ...] = ()
    placements: tuple[Placement, ...] = (PLAIN, BARE)
    ignored: str = r"\.rotary_emb\.inv_freq$"
    gguf: Mapping[str, str] = field(default_factory=dict)
    gguf_turned: bool = False

    def read_config(self, stored: Mapping[str, Any], *, origin: str) -> TransformerConfig:
        """Translate a config.json; raise CheckpointError, naming `origin`, for what is missing or not implemented."""
        config = HubConfig(stored, self.defaults, origin=origin)
        layers, positions = config.integer("num_hidden_layers"), config.integer("max_position_embeddings")
        config.check(layers, positions)
        heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
        try:
            return TransformerConfig(
                vocab_size=config.integer("vocab_size"),
                hidden_size=hidden,
                num_layers=layers,
                num_heads=heads,
                num_kv_heads=config.values.get("num_key_value_heads") or heads,
                head_size=config.values.get("head_dim") or hidden // heads,
                intermediate_size=config.integer("intermediate_size"),
                max_positions=positions,
                norm_eps=config.number("rms_norm_eps"),
                rope=config.rope(positions, query_scale=self.query_scale),
                tie_embeddings=config.flag("tie_word_embeddings"),
                **self.traits(config),
            )
        except (ValueError, ZeroDivisionError) as error:
            raise CheckpointError(f"{origin}: {error}") from error

    def placement(self, stored: Collection[str]) -> Placement:
        """Return how a file with these tensor names is laid out; our first when it has no embeddings at all."""
        embed = "embed.weight"
        return next(
            (place for place in self.placements if place.hub_name(embed) in stored), self.placements[0]
        )

    def is_ignored(self, name: str) -> bool:
        """Say whether a stored tensor is none of the text model's."""
        return re.search(self.ignored, name) is not None


def gguf_name(name: str) -> str:
    """Return what llama.cpp calls our tensor `name`."""
    module, _, kind = name.rpartition(".")
    return f"{_renamed(module, GGUF_NAMES)}.{kind}"


def _renamed(module: str, names: Mapping[str, str]) -> str:
    """Translate one module path; a layer number fills the `{i}` of both spellings."""
    layer = re.match(r"layers\.(\d+)\.", module)
    if layer is None:
        return names[module]
    return names[re.sub(r"^layers\.\d+", "layers.{i}", module)].format(i=layer[1])
