"""A tokenizer of letters and tiny random denoisers, so that every test is exact and quick."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from unmask.config import AdapterConfig, TransformerConfig
from unmask.model.adapter import Adapter
from unmask.model.cache import KVCache
from unmask.model.denoiser import Denoiser, Draft
from unmask.model.transformer import Transformer
from unmask.tokenizer import Tokenizer

SYMBOLS = ["<eos>", "<bos>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ã", "©", "Ċ"]
"""The vocabulary: two special tokens, letters, a space, the two bytes of an é, a line feed."""


def letter_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token for each of the symbols."""
    backend = tokenizers.Tokenizer(models.BPE({text: i for i, text in enumerate(SYMBOLS)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<bos>"])
    return Tokenizer(backend, {"eos_token": "<eos>", "bos_token": "<bos>"})


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of 260-odd tokens that spells every text: all bytes, and some pieces that JSON is made of."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ('"', ":"),
        ('":', "Ġ"),
        (",", "Ġ"),
        ("t", "r"),
        ("u", "e"),
        ("tr", "ue"),
        ('"', "}"),
        ("Ã", "©"),
    ]
    words = ["<eos>", "<bos>", *letters, *("".join(pair) for pair in merges)]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<bos>"])
    return Tokenizer(backend, {"eos_token": "<eos>", "bos_token": "<bos>"})


@dataclass(frozen=True)
class CountingDenoiser(Denoiser):
    """A denoiser that keeps a record of its calls, and its caches."""

    calls: list[str] = field(default_factory=list)
    caches: list[KVCache] = field(default_factory=list)

    def new_cache(self, capacity: int, *, num_rows: int = 1) -> KVCache:
        self.caches.append(super().new_cache(capacity, num_rows=num_rows))
        return self.caches[-1]

    def causal(
        self, tokens: Tensor, start: int, cache: KVCache, *, row: int = 0, num_heads: int = 1
    ) -> Tensor:
        self.calls.append("causal")
        return super().causal(tokens, start, cache, row=row, num_heads=num_heads)

    def draft(
        self,
        pending: Sequence[int],
        canvas: Tensor,
        start: int,
        cache: KVCache,
        *,
        row: int = 0,
        time: Tensor | None = None,
        belief: Tensor | None = None,
    ) -> Draft:
        self.calls.append("draft")
        return super().draft(pending, canvas, start, cache, row=row, time=time, belief=belief)


def random_denoiser(
    *,
    seed: int = 0,
    num_layers: int = 2,
    vocab_size: int = len(SYMBOLS),
    num_allowed: int | None = None,
    logit_shift: bool = True,
    has_adapter: bool = True,
    max_positions: int = 128,
    sharpness: float = 6.0,
) -> CountingDenoiser:
    """Return a random denoiser; few allowed tokens make speculation succeed by chance."""
    generator = torch.Generator().manual_seed(seed)
    config = TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        intermediate_size=24,
        max_positions=max_positions,
    )
    model = Transformer(config).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    model.embed.weight.mul_(4.0)
    model.head_weight.mul_(sharpness)
    if not has_adapter:
        return CountingDenoiser(model)
    adapter = Adapter(config, AdapterConfig(rank=4, alpha=4.0)).requires_grad_(False)
    for parameter in adapter.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    banned = () if num_allowed is None else tuple(range(2 + num_allowed, vocab_size))
    return CountingDenoiser(
        model, adapter=adapter, mask_token_id=vocab_size, logit_shift=logit_shift, banned=banned
    )


def prompt_of(seed: int, length: int = 6) -> list[int]:
    """Return a random prompt of letters."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 28, (length,), generator=generator).tolist()
