"""The text that one-at-a-time diffusion writes, block by block, with the oracles of every block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.decoding.admission import admit
from unmask.decoding.generate import PREFILL_CHUNK
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.decoding.transcript import Transcript
from unmask.errors import UsageError
from unmask.evaluation.oracle import CanvasOracle, OracleCounts
from unmask.model.denoiser import Denoiser


@dataclass(frozen=True)
class Block:
    """One canvas of `length` places, of which the text took `num_tokens`, and what its oracles need."""

    length: int
    num_tokens: int
    counts: OracleCounts


@dataclass(frozen=True)
class SerialText:
    """A text, its blocks, and the forwards beside those of the canvases: each commits a block and gives a token."""

    token_ids: tuple[int, ...]
    blocks: tuple[Block, ...]
    num_commits: int


def require_canvas(model: LanguageModel) -> None:
    """Raise UsageError for a model on which no oracle is defined."""
    denoiser = model.denoiser
    if denoiser.mask_token_id is None or denoiser.vectors is not None:
        raise UsageError(
            "this model has no mask token, so no rule decodes it",
            "convert it first" if denoiser.predicts_next else "choose a model of masked noise",
        )
    if denoiser.full_attention:
        raise UsageError(
            "this model sees the whole sequence both ways; the oracles go block by block behind a causal stream",
            "choose a block or converted model",
        )
    if denoiser.conditioning is not None and denoiser.conditioning.belief is not None:
        raise UsageError(
            "this model is told its last belief, so a canvas alone does not decide what it proposes",
            "choose a model without self-conditioning",
        )


def write_serially(
    model: LanguageModel, prompt_ids: Sequence[int], options: Options, *, max_canvases: int
) -> SerialText:
    """Write greedily in mode diffusion with rule top-k:1, and run the oracles of every block on the way.

    The text is that of `generate`, from the same forwards. Of `options`, resolved, the lengths and stop tokens count.
    `max_canvases`: see `CanvasOracle`.
    """
    denoiser, length = model.denoiser, options.block_length
    assert length is not None  # resolve
    assert denoiser.mask_token_id is not None  # require_canvas
    room = admit(denoiser, prompt_ids, options)
    transcript = Transcript(model.tokenizer, options, room=room)
    text = _GrowingText(denoiser, len(prompt_ids) + room)
    first = text.prefill(prompt_ids)
    if first is not None:
        transcript.append(first, 0)
    blocks, num_commits = [], 0
    while not transcript.is_finished:
        text.tokens = [*prompt_ids, *transcript.token_ids]
        before = len(transcript.token_ids)
        oracle = CanvasOracle(
            text.denoise,
            denoiser.mask_token_id,
            min(length, transcript.room),
            options.stop_token_ids or (),
            max_canvases,
        )
        counts = oracle.counts()
        for token in oracle.target[: oracle.num_wanted]:
            transcript.append(token, 0)
        blocks.append(Block(oracle.length, len(transcript.token_ids) - before, counts))
        if denoiser.predicts_next and not transcript.is_finished:
            transcript.append(text.commit(oracle.target), 0)
            num_commits += 1
    return SerialText(tuple(transcript.token_ids), tuple(blocks), num_commits)


class _GrowingText:
    """A text and its keys and values: the canvas behind it, and the likeliest token after it."""

    def __init__(self, denoiser: Denoiser, capacity: int) -> None:
        self._denoiser, self._cache = denoiser, denoiser.new_cache(capacity)
        self.tokens: list[int] = []

    def prefill(self, tokens: Sequence[int]) -> int | None:
        """Run the prompt; return the token after it where the model predicts one."""
        return list(self._causal(tokens, 0))[-1]

    def commit(self, block: Sequence[int]) -> int:
        """Run a finished block behind the text; return the token after it."""
        (token,) = self._causal(block, len(self.tokens))
        assert token is not None  # predicts_next
        return token

    def denoise(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        """Return the logits (1, L, K) of the canvas (1, L) behind the text, as decoding computes them."""
        first = min(self._cache.lengths[0], len(self.tokens) - 1)
        draft = self._denoiser.draft(self.tokens[first:], tokens[0], first, self._cache, time=time[0])
        return draft.logits[None, : tokens.shape[1], : self._denoiser.vocab_size].cpu()

    def _causal(self, tokens: Sequence[int], start: int) -> Iterator[int | None]:
        for begin in range(0, len(tokens), PREFILL_CHUNK):
            chunk = torch.tensor(tokens[begin : begin + PREFILL_CHUNK])
            is_last = begin + len(chunk) == len(tokens) and self._denoiser.predicts_next
            logits = self._denoiser.causal(chunk, start + begin, self._cache, num_heads=int(is_last))
            yield int(logits[0].argmax()) if is_last else None
