"""A tiny tokenizer and tiny random denoisers, so that every test is exact and quick."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import tokenizers
import torch
from hypothesis import settings
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from unmask.config import AdapterConfig, TransformerConfig
from unmask.decoding.generate import Generation
from unmask.model.adapter import Adapter
from unmask.model.cache import KVCache
from unmask.model.denoiser import Denoiser, Draft
from unmask.model.transformer import Transformer
from unmask.tokenizer import Tokenizer

settings.register_profile("unmask", deadline=None)  # a busy machine is not a failure
settings.load_profile("unmask")

SYMBOLS = ["<eos>", "<bos>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ã", "©", "Ċ"]
"""The vocabulary: two special tokens, letters, a space, the two bytes of an é, a line feed."""


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE({text: i for i, text in enumerate(SYMBOLS)}, []))
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


MakeDenoiser = Callable[..., CountingDenoiser]


@pytest.fixture(scope="session")
def make_denoiser() -> MakeDenoiser:
    """Return a maker of random denoisers; few allowed tokens make speculation succeed by chance."""

    def make(
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

    return make


@pytest.fixture(scope="session")
def essence() -> Callable[[Generation], tuple[object, ...]]:
    """Return what two runs that decide the same must share."""
    return lambda generation: (generation.token_ids, generation.text, generation.finish_reason)


def prompt_of(seed: int, length: int = 6) -> list[int]:
    """Return a random prompt of letters."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 28, (length,), generator=generator).tolist()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return [prompt_of(seed, 1 + seed % 9) for seed in range(20)]
