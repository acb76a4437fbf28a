"""What a generation has written so far, and whether it is finished."""

from typing import Literal

from torch import Tensor

from unmask.decoding.logprobs import TokenLogprobs, token_logprobs
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]

_UNFINISHED = "\ufffd"
"""What a decoder writes for the bytes of a character whose end has not come yet."""


class TextStream:
    """Text of a growing list of tokens, piece by piece; a character cut between bytes waits for the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_settled = 0
        self._num_shown = 0

    def push(self, token: int) -> str:
        """Return the text that `token` adds.

        Decodes a short window: the tokens since the last but one that showed something, because what a token
        looks like may depend on the one before (a leading space).
        """
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        whole = text.rstrip(_UNFINISHED)
        piece = whole[self._num_shown :]
        self._num_shown = max(self._num_shown, len(whole))
        if piece and whole == text:
            self._window = self._window[self._num_settled :]
            self._num_settled = len(self._window)
            self._num_shown = len(self._tokenizer.decode(self._window))
        return piece


class Transcript:
    """The decided tokens of one request in order, and the reason why no more may come.

    Tokens enter one by one through `append`, whatever the mode decided together; so every mode that decides
    the same tokens stops at the same one. `room` tokens fit at most.
    """

    def __init__(self, tokenizer: Tokenizer, options: Options, *, room: int) -> None:
        self._tokenizer = tokenizer
        self._stop = options.stop
        self._stop_token_ids = frozenset(options.stop_token_ids or ())
        self._stream = TextStream(tokenizer)
        self._tail = ""
        self._limit = room
        self._num_logprobs = options.num_logprobs
        self.token_ids: list[int] = []
        self.decided_at: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        spelled = {
            tokenizer.decode([special], skip_special=False): special for special in tokenizer.special_ids
        }
        for text in self._stop:
            if text in spelled:
                raise UsageError(
                    f"stop={text!r} is a special token, which never shows in the text",
                    f"stop at its id instead: stop_token_ids=({spelled[text]},)",
                )

    @property
    def room(self) -> int:
        """How many more tokens may come."""
        return self._limit - len(self.token_ids)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        """The text without the stop token that ended it, cut before the first stop string."""
        ends_in_stop_token = bool(self.token_ids) and self.token_ids[-1] in self._stop_token_ids
        text = self._tokenizer.decode(self.token_ids[:-1] if ends_in_stop_token else self.token_ids)
        return text[
            : min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=len(text))
        ]

    def append(self, token: int, step: int) -> None:
        """Take the next token, decided by forward `step`, unless the transcript is finished."""
        if self.is_finished:
            return
        self.token_ids.append(token)
        self.decided_at.append(step)
        if token in self._stop_token_ids or (self._stop and self._completes_stop(token)):
            self.finish_reason = "stop"
        elif not self.room:
            self.finish_reason = "length"

    def explain(self, logits: Tensor) -> None:
        """Note, where that was asked for, what the model's logits say of the tokens that came since the last time.

        `logits`: (n, V), a row for each of them; what is left is for tokens behind the end.
        """
        if self._num_logprobs is not None:
            fresh = self.token_ids[len(self.logprobs) :]
            self.logprobs += token_logprobs(logits, fresh, self._num_logprobs)

    def _completes_stop(self, token: int) -> bool:
        text = self._tail + self._stream.push(token)
        self._tail = text[-max(len(stop) for stop in self._stop) :]
        return any(stop in text for stop in self._stop)
