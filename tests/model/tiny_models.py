"""Random models small enough for a test, as objects, as folders and as GGUF files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape, quantize
from tokenizers import decoders, models, pre_tokenizers

from unmask.config import TransformerConfig
from unmask.layout import causal_layout
from unmask.model.catalogue import ModelCard
from unmask.model.checkpoint import Checkpoint
from unmask.model.family import gguf_name
from unmask.model.transformer import Transformer
from unmask.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

CONFIG = TransformerConfig(
    vocab_size=264,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    intermediate_size=24,
    max_positions=64,
)

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
START, END = len(ALPHABET), len(ALPHABET) + 1


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per byte and two special ones."""
    backend = tokenizers.Tokenizer(models.BPE({text: i for i, text in enumerate(ALPHABET)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|start|>", "<|end|>"])
    return Tokenizer(backend, {"bos_token": "<|start|>", "eos_token": "<|end|>"}, TEMPLATE)


def random_transformer(config: TransformerConfig = CONFIG, seed: int = 0) -> Transformer:
    """Return a model whose every parameter, norms and biases too, would show a mistake in it."""
    transformer = Transformer(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in transformer.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    return transformer


def tiny_checkpoint(config: TransformerConfig = CONFIG, family: str = "llama") -> Checkpoint:
    """Return a random model of a family, with a byte tokenizer."""
    card = ModelCard("tiny", family, "none", "random", config.max_positions, stop_token_ids=(END,))
    return Checkpoint(random_transformer(config), byte_tokenizer(), card)


def logits_of(transformer: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Return the causal logits of every token: (N, V)."""
    with torch.no_grad():
        return transformer.logits(transformer(tokens, causal_layout(len(tokens))))


def random_blocks(kind: Kind, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Return bytes of any quantised type: random codes, and the half-precision scales set to sane numbers."""
    raw = generator.integers(0, 256, quant_shape_to_byte_shape(shape, kind), dtype=np.uint8)
    blocks = raw.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    offsets = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}[kind]
    for offset in offsets:
        scales = generator.uniform(1e-4, 1e-3, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    return raw


def stored_as(kind: Kind, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return weights in a type's bytes; for those the package cannot quantise, random ones in their place."""
    if kind in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
        return random_blocks(kind, weights.shape, generator)
    return quantize(weights, kind)


def turned(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """Return the rows of q or k as llama.cpp's converter orders them for its `llama` architecture."""
    halves = weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    path: Path,
    transformer: Transformer,
    *,
    architecture: str = "llama",
    kind: Kind = Kind.F32,
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    pre: str = "smollm",
) -> dict[str, np.ndarray]:
    """Write a model as llama.cpp's converter would; return the bytes of each quantised tensor, by llama.cpp's name."""
    config = transformer.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    padding = [f"<pad{i}>" for i in range(config.vocab_size - len(ALPHABET) - 4)]
    writer.add_token_list([*ALPHABET, "<|start|>", "<|end|>", "th", "the", *padding])
    writer.add_token_types([1] * len(ALPHABET) + [3, 3, 1, 1] + [4] * len(padding))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(START)
    writer.add_eos_token_id(END)
    writer.add_chat_template(TEMPLATE)
    for key, value in (extra or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    generator = np.random.default_rng(0)
    written: dict[str, np.ndarray] = {}
    for name, tensor in transformer.state_dict().items():
        weights = tensor.numpy()
        if architecture in ("llama", "mistral3") and ".attention.q." in name:
            weights = turned(weights, config.num_heads)
        if architecture in ("llama", "mistral3") and ".attention.k." in name:
            weights = turned(weights, config.num_kv_heads)
        used = kind if weights.ndim == 2 else Kind.F32
        raw = stored_as(used, np.ascontiguousarray(weights), generator)
        written[gguf_name(name)] = raw
        writer.add_tensor(gguf_name(name), raw, raw_dtype=used)
    for name, weights in (tensors or {}).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written
