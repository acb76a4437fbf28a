"""Text that a model writes itself: the training data of a conversion that needs no corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.layout import Layout, Segment
from unmask.model.cache import KVCache
from unmask.model.transformer import Transformer


@dataclass(frozen=True)
class SynthesisConfig:
    """How a model is made to write.

    An instruct model that is given the bare head of a chat, up to the user's turn, invents the user and answers.
    `free_tokens` are drawn at temperature 1 so that documents differ; after them each document keeps to one of
    `temperatures` (0 is greedy, what most decoding will do later).
    """

    length: int = 320
    batch_size: int = 256
    free_tokens: int = 32
    temperatures: tuple[float, ...] = (0.0, 0.0, 0.5, 0.8)
    top_k: int = 64
    top_p: float = 0.95


@torch.inference_mode()
def write_batch(
    transformer: Transformer,
    head: Sequence[int],
    config: SynthesisConfig,
    *,
    stop_token: int | None,
    seed: int,
    batch: int,
) -> list[list[int]]:
    """Return documents of up to `config.length` token ids, each starting with `head` and ending at `stop_token`.

    The batch grows in lockstep, one forward a token. Its noise is seeded by (seed, batch), so that any batch can be
    written again alone.
    """
    rows, model = config.batch_size, transformer
    cache = KVCache(
        model.config, num_rows=rows, capacity=config.length, dtype=model.dtype, device=model.device
    )
    kept = torch.tensor([config.temperatures[row % len(config.temperatures)] for row in range(rows)])
    generator = torch.Generator(model.device).manual_seed(seed * 1_000_003 + batch)
    tokens = torch.tensor(head, dtype=torch.int64, device=model.device).expand(rows, -1)
    hidden = model(tokens.flatten(), _lockstep(rows, 0, len(head)), cache)[len(head) - 1 :: len(head)]
    while True:
        is_free = tokens.shape[1] - len(head) < config.free_tokens
        temperatures = (torch.ones_like(kept) if is_free else kept).to(model.device)
        chosen = _sample(model.logits(hidden), temperatures, config, generator)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        if tokens.shape[1] == config.length:
            return [_until(document, stop_token, len(head)) for document in tokens.tolist()]
        hidden = model(chosen, _lockstep(rows, tokens.shape[1] - 1, 1), cache)


def _lockstep(rows: int, start: int, length: int) -> Layout:
    return Layout([Segment(start, length, store=True, row=row) for row in range(rows)])


def _sample(
    logits: Tensor, temperatures: Tensor, config: SynthesisConfig, generator: torch.Generator
) -> Tensor:
    """Draw one token a row from (R, V) logits, at the row's temperature within top-k and top-p: (R,)."""
    best, ids = logits.topk(min(config.top_k, logits.shape[-1]), dim=-1)
    laws = (best / temperatures.clamp(min=1e-4)[:, None]).softmax(-1)
    before = laws.cumsum(-1) - laws
    laws = laws.masked_fill(before > config.top_p, 0)
    return ids.gather(1, torch.multinomial(laws, 1, generator=generator))[:, 0]


def _until(document: list[int], stop_token: int | None, skip: int) -> list[int]:
    if stop_token is None or stop_token not in document[skip:]:
        return document
    return document[: document.index(stop_token, skip) + 1]
