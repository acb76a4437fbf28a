"""The text of a generation while it grows, as far as nothing can take it back."""

from collections.abc import Iterable, Sequence

from unmask.decoding.transcript import TextStream
from unmask.tokenizer import Tokenizer


class SettledText:
    """Text of decided tokens, piece by piece; what may turn out to be a stop string waits until it is not.

    The pieces together are the text of the generation. No piece ends within a character.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], stop_token_ids: Iterable[int]) -> None:
        self._stream = TextStream(tokenizer)
        self._stop = tuple(stop)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._decided = ""
        self._num_shown = 0

    def push(self, tokens: Iterable[int]) -> str:
        """Return the text that is settled by further tokens."""
        for token in tokens:
            if token not in self._stop_token_ids:
                self._decided += self._stream.push(token)
        return self._until(self._safe_end())

    def finish(self, text: str) -> str:
        """Return what is left of a generation's whole text."""
        self._decided = text
        return self._until(len(text))

    def _until(self, end: int) -> str:
        piece = self._decided[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return piece

    def _safe_end(self) -> int:
        """Return where the text ends that no stop string can take back."""
        text = self._decided
        ends = [len(text)]
        for stop in self._stop:
            if (place := text.find(stop)) >= 0:
                ends.append(place)
            ends += [len(text) - size for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return min(ends)
