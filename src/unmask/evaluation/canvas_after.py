"""The canvas that follows a text, as a denoiser function."""

from collections.abc import Sequence

from torch import Tensor

from unmask.model.denoiser import Denoiser


class CanvasAfter:
    """A `DenoiserFunction` of one row: the canvas after a text that may grow, whose keys and values are kept.

    The first call after the text has grown runs what is new of it too. `capacity`: most tokens of text.
    """

    def __init__(self, denoiser: Denoiser, text: Sequence[int], *, capacity: int) -> None:
        self._denoiser, self._text = denoiser, list(text)
        self._cache = denoiser.new_cache(capacity)

    def extend(self, tokens: Sequence[int]) -> None:
        """Move the canvas behind more text."""
        self._text += tokens

    def __call__(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        """Return logits (1, L, K) of a canvas (1, L)."""
        past = None if belief is None else belief[0]
        draft = self._denoiser.draft_after(self._text, tokens[0], self._cache, time=time[0], belief=past)
        return draft.logits[None, : tokens.shape[1], : self._denoiser.vocab_size].cpu()
