"""Log-probabilities of tokens, told with the text that the tokens make."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unmask.decoding.generation import Generation
from unmask.decoding.logprobs import TokenLogprobs
from unmask.decoding.transcript import TextStream
from unmask.serving.answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from unmask.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Told:
    """A token, where in the answer's text it begins, in characters, and how probable it was."""

    token: int
    offset: int
    logprobs: TokenLogprobs


class Trail:
    """Tokens of one answer that wait until their text is shown; those of a stop string never are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._stream = TextStream(tokenizer)
        self._waiting: deque[Told] = deque()
        self._num_characters = 0

    def push(self, tokens: Iterable[int], logprobs: Iterable[TokenLogprobs]) -> None:
        """Take tokens that were decided."""
        for token, own in zip(tokens, logprobs, strict=True):
            self._waiting.append(Told(token, self._num_characters, own))
            self._num_characters += len(self._stream.push(token))

    def shown(self, num_characters: int) -> list[Told]:
        """Return the tokens whose text begins before the end of what is shown, each once."""
        told = []
        while self._waiting and self._waiting[0].offset < num_characters:
            told.append(self._waiting.popleft())
        return told


def told_of(tokenizer: Tokenizer, generation: Generation) -> list[Told]:
    """Return the tokens that a whole answer's text shows; none where log-probabilities were not asked for."""
    trail = Trail(tokenizer)
    if generation.logprobs is not None:
        trail.push(generation.token_ids, generation.logprobs)
    return trail.shown(len(generation.text))


def chat_logprobs(tokenizer: Tokenizer, told: Sequence[Told]) -> ChatLogprobs:
    """Return log-probabilities as chat completions have them."""

    def of(token: int, logprob: float) -> TopLogprob:
        text = _text(tokenizer, token)
        known = None if _UNFINISHED in text else list(text.encode())
        return TopLogprob(token=text, logprob=logprob, bytes=known)

    return ChatLogprobs(
        content=[
            TokenLogprob(
                **of(each.token, each.logprobs.logprob).model_dump(),
                top_logprobs=[of(token, logprob) for token, logprob in each.logprobs.top],
            )
            for each in told
        ]
    )


def completion_logprobs(tokenizer: Tokenizer, told: Sequence[Told]) -> CompletionLogprobs:
    """Return log-probabilities as completions have them; of several tokens with one text the likeliest counts."""
    return CompletionLogprobs(
        tokens=[_text(tokenizer, each.token) for each in told],
        token_logprobs=[each.logprobs.logprob for each in told],
        top_logprobs=[
            {_text(tokenizer, token): logprob for token, logprob in reversed(each.logprobs.top)}
            for each in told
        ],
        text_offset=[each.offset for each in told],
    )


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special=False)
