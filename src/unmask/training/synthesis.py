"""Text that a model writes itself: the training data of a conversion that needs no corpus."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.chat_template import Message
from unmask.decoding.candidates import draw
from unmask.errors import UsageError
from unmask.layout import Layout, Segment
from unmask.model.cache import KVCache
from unmask.model.transformer import Transformer
from unmask.rng import Stream, uniforms
from unmask.tokenizer import Tokenizer


@dataclass(frozen=True)
class SynthesisConfig:
    """How a model is made to write.

    An instruct model that is given the bare head of a chat, up to the user's turn, invents the user and answers.
    Up to `free_tokens` before the answer are drawn at temperature 1 so that documents differ; all others of a
    document at one of `temperatures` (0 is greedy, what most decoding will do later), within `top_k` (0 is
    off), then `top_p`.
    """

    length: int = 320
    batch_size: int = 256
    free_tokens: int = 32
    temperatures: tuple[float, ...] = (0.0, 0.0, 0.5, 0.8)
    top_k: int = 64
    top_p: float = 0.95

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("batch_size", 1), ("free_tokens", 0), ("top_k", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.temperatures or not all(0 <= value < math.inf for value in self.temperatures):
            raise UsageError(f"temperatures={self.temperatures}: give one or more, each 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p} must be above 0 and at most 1")


@dataclass(frozen=True)
class Script:
    """What is laid down of a document: its `head`, the `bridge` from the user's words to the answer, and its end.

    The model itself writes the first token of the bridge, which ends the user's words, and is then given the others.
    Without a chat template, or with one in which no special token ends the user's words, there is no bridge.
    """

    head: tuple[int, ...]
    bridge: tuple[int, ...]
    stop_token: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Script":
        """Read the script off a chat template."""
        head = tokenizer.chat_head()
        bridge: list[int] = []
        if tokenizer.chat_template is not None:
            words = "hello"
            opening = [*head, *tokenizer.encode(words)]
            prompt = tokenizer.render_chat([{"role": "user", "content": words}])
            rest = prompt[len(opening) :]
            if prompt[: len(opening)] == opening and rest and rest[0] in tokenizer.special_ids:
                bridge = rest
        return cls(tuple(head), tuple(bridge), tokenizer.eos_id)

    def messages(self, document: Sequence[int], tokenizer: Tokenizer) -> list[Message] | None:
        """Return what the user and the assistant say in a document; None where they do not both speak."""
        spoken = list(document[len(self.head) :])
        if not self.bridge or self.bridge[0] not in spoken:
            return None
        end = spoken.index(self.bridge[0])
        question, answer = (
            tokenizer.decode(ids).strip() for ids in (spoken[:end], spoken[end + len(self.bridge) :])
        )
        if not question or not answer:
            return None
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@torch.inference_mode()
def write_batch(
    transformer: Transformer,
    head: Sequence[int],
    config: SynthesisConfig,
    *,
    stop_token: int | None,
    seed: int,
    batch: int,
    bridge: Sequence[int] = (),
    observe: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Return documents of up to `config.length` token ids, each starting with `head` and ending at `stop_token`.

    `bridge`: see `Script`. The batch grows in lockstep, one forward a token, and `observe` is told the tokens so far;
    documents that have ended leave it. The noise of a token is keyed by (seed, document, place), so that any batch can
    be written again alone.
    """
    rows = config.batch_size
    writing = _Writing(config, stop_token, tuple(bridge), seed, range(batch * rows, (batch + 1) * rows))
    start = torch.tensor(head, dtype=torch.int64, device=transformer.device)
    cache = KVCache(
        transformer.config,
        num_rows=rows,
        capacity=config.length,
        dtype=transformer.dtype,
        device=transformer.device,
    )
    hidden = transformer(start, Layout([Segment(0, len(start), store=True, row=0)]), cache)[-1:]
    for stored in (cache.keys, cache.values):  # the head is the same in every row
        stored[:, 1:, :, : len(start)] = stored[:, :1, :, : len(start)]
    cache.lengths[:] = [len(start)] * rows
    hidden = hidden.expand(rows, -1)
    for place in range(len(start), config.length):
        tokens = writing.step(transformer.logits(hidden), place - len(start))
        if observe is not None:
            observe(writing.num_tokens)
        if place + 1 == config.length or writing.is_finished:
            break
        kept = writing.leave()
        if kept is not None:
            tokens = tokens[kept]
            _keep_rows(cache, kept, place)
        layout = Layout([Segment(place, 1, store=True, row=row) for row in range(len(tokens))])
        hidden = transformer(tokens, layout, cache)
    return [[*head, *words] for words in writing.documents]


class _Writing:
    """The documents of a batch while they are written; row r of its tensors is document ``live[r]``."""

    def __init__(
        self,
        config: SynthesisConfig,
        stop_token: int | None,
        bridge: tuple[int, ...],
        seed: int,
        numbers: range,
    ) -> None:
        self.config, self.bridge, self.seed, self.numbers = config, bridge, seed, numbers
        self.stop_token = -1 if stop_token is None else stop_token
        self.documents: list[list[int]] = [[] for _ in numbers]
        self.num_tokens = 0
        count, kinds = len(numbers), config.temperatures
        self.live = torch.arange(count)
        self.temperatures = torch.tensor([kinds[row % len(kinds)] for row in range(count)])
        self.given = torch.zeros(count, dtype=torch.int64)  # how many tokens of the bridge are still to come
        self.answers = torch.zeros(count, dtype=torch.bool)
        self.ended = torch.zeros(count, dtype=torch.bool)

    @property
    def is_finished(self) -> bool:
        return bool(self.ended.all())

    def step(self, logits: Tensor, place: int) -> Tensor:
        """Decide the next token of every row from (R, V) logits: (R,)."""
        is_free = ~self.answers & (place < self.config.free_tokens)
        temperatures = self.temperatures.masked_fill(is_free, 1.0)
        numbers = [self.numbers[document] for document in self.live.tolist()]
        noise = uniforms([self.seed] * len(numbers), [[place]] * len(numbers), numbers, Stream.TOKEN)[:, 0]
        tokens = _sample(logits, temperatures, self.config, torch.from_numpy(noise)).cpu()
        is_given, writes = self.given > 0, ~self.ended
        starts = torch.zeros_like(writes)
        if self.bridge:
            tokens = torch.where(is_given, torch.tensor(self.bridge)[-self.given], tokens)
            starts = ~self.answers & (tokens == self.bridge[0])
            self.given = torch.where(starts, len(self.bridge) - 1, (self.given - 1).clamp_min(0))
            self.answers |= starts
        self.ended |= (tokens == self.stop_token) & ~starts & ~is_given
        for row in writes.nonzero()[:, 0].tolist():
            self.documents[int(self.live[row])].append(int(tokens[row]))
        self.num_tokens += int(writes.sum())
        return tokens.to(logits.device)

    def leave(self) -> Tensor | None:
        """Let go of the rows that have ended, once they are a quarter; return the rows that stay, or None for all."""
        if 4 * int(self.ended.sum()) < len(self.ended):
            return None
        kept = (~self.ended).nonzero()[:, 0]
        self.live, self.temperatures = self.live[kept], self.temperatures[kept]
        self.given, self.answers, self.ended = self.given[kept], self.answers[kept], self.ended[kept]
        return kept


def _keep_rows(cache: KVCache, rows: Tensor, length: int) -> None:
    """Move ascending rows of a cache, `length` positions of each, to its beginning."""
    for stored in (cache.keys, cache.values):
        for layer in stored:
            layer[: len(rows), :, :length] = layer[rows.to(layer.device), :, :length]


def _sample(logits: Tensor, temperatures: Tensor, config: SynthesisConfig, noise: Tensor) -> Tensor:
    """Draw one token a row from (R, V) logits, at the row's temperature within top-k and top-p: (R,)."""
    best, ids = logits.topk(min(config.top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
    laws = (best.double() / temperatures.to(best.device).clamp(min=1e-4)[:, None]).softmax(-1)
    before = laws.cumsum(-1) - laws
    laws = laws.masked_fill(before >= config.top_p, 0)
    return ids.gather(1, draw(laws, noise.to(laws.device))[:, None])[:, 0]
