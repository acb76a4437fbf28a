"""A converted model's canvas as a denoiser of blocks, of which likelihoods and bounds can be measured."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.errors import UsageError
from unmask.evaluation.agreement import common_prefix
from unmask.layout import causal_layout
from unmask.model.cache import KVCache
from unmask.model.denoiser import Canvas, Denoiser

_LEAST_CAPACITY = 256


class CanvasBlocks:
    """A `BlockDenoiser`: each block is a canvas on the causal stream's keys and values of the clean tokens before it.

    With a logit shift the causal stream predicts the first token of a block, as it does in decoding. What is run twice
    is computed once: a text that begins like the one before it, canvases that are equal. Raises UsageError for a model
    without a canvas, and for one that is told the time, of which a canvas says nothing.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        if denoiser.mask_token_id is None:
            raise UsageError("this model has no mask token, so it has no canvas", "convert it first")
        if denoiser.conditioning is not None:
            raise UsageError(
                "this model is told the time or its last belief", "measure it as the model it was trained as"
            )
        self._denoiser, self._text = denoiser, _CausalText(denoiser)

    @property
    def process(self) -> Masked:
        """The noise of a canvas; an exact count of masks needs no more of the schedule."""
        return Masked(self._denoiser.vocab_size, self._denoiser.mask_token_id, Linear())

    @torch.inference_mode()
    def __call__(
        self, clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int], wanted: Tensor
    ) -> Tensor:
        """Return logits (M, K) at the wanted places."""
        denoiser, device = self._denoiser, self._denoiser.transformer.device
        texts, text_of = clean.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        hidden = torch.zeros(
            *clean.shape,
            denoiser.transformer.config.hidden_size,
            dtype=denoiser.transformer.dtype,
            device=device,
        )
        for number, text in enumerate(texts):
            rows = text_of == number
            hidden[rows.to(device)] = self._states(text, noisy[rows], starts)
        return denoiser.head(hidden[wanted.to(device)])[:, : denoiser.vocab_size].cpu()

    def _states(self, clean: Tensor, noisy: Tensor, starts: Sequence[int]) -> Tensor:
        """Return the states (R, L, D) that predict the noisy rows (R, L) of one clean text (L,)."""
        causal, cache = self._text.run(clean)
        shift, (num_rows, length) = int(self._denoiser.logit_shift), noisy.shape
        hidden = causal.new_zeros(num_rows, length, causal.shape[-1])
        if shift:
            hidden[:, list(starts)] = causal[[start - 1 for start in starts]]
        spans = list(zip(starts, [*starts[1:], length], strict=True))
        # Under a shift a canvas of a single token has nothing to say.
        places = {
            (row, start, end): Canvas(0, start, noisy[row, start:end])
            for row in range(num_rows)
            for start, end in spans
            if end - start > shift
        }
        numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        for canvas in places.values():
            numbers.setdefault((canvas.start, tuple(canvas.tokens.tolist())), len(numbers))
        if places:
            distinct = [Canvas(0, start, torch.tensor(tokens)) for start, tokens in numbers]
            states = self._denoiser.canvas_states(distinct, cache)
            longest = max(end - start for start, end in spans)
            seen = causal.new_zeros(len(distinct), longest, causal.shape[-1])
            seen[states.canvas, states.position] = states.hidden
            for (row, start, end), canvas in places.items():
                number = numbers[start, tuple(canvas.tokens.tolist())]
                hidden[row, start + shift : end] = seen[number, shift : end - start]
        return hidden


class _CausalText:
    """A text's causal states, keys and values; the next text runs from where it differs from the last one."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._cache: KVCache | None = None
        self._tokens: list[int] = []
        self._states: Tensor | None = None

    def run(self, text: Tensor) -> tuple[Tensor, KVCache]:
        """Return the states (L, D) of a text (L,), and a cache whose row 0 holds it."""
        tokens, transformer = text.tolist(), self._denoiser.transformer
        if self._cache is None or self._states is None or self._cache.capacity < len(tokens):
            self._cache = self._denoiser.new_cache(max(len(tokens), _LEAST_CAPACITY))
            self._tokens, self._states = [], torch.empty(0, device=transformer.device)
        shared = common_prefix(self._tokens, tokens)
        if shared < len(tokens):
            layout = causal_layout(len(tokens) - shared, start=shared, row=0)
            new = transformer(text[shared:].to(transformer.device), layout, self._cache)
            self._states = torch.cat([self._states[:shared], new]) if shared else new
            self._tokens = tokens
        return self._states[: len(tokens)], self._cache
