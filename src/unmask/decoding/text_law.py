"""Laws of next tokens that depend on the text before them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.decoding.candidates import Candidates, appraise, draw, propose, sampling_law
from unmask.decoding.constraint import NO_TOKEN, Matcher
from unmask.decoding.options import Options
from unmask.errors import FailureError
from unmask.tokenizer import Tokenizer


class _Walk(NamedTuple):
    """Places one after the other: the logits (n, V) that hold there, and their laws (n, V).

    From place `num_sound` on, where a constraint admits nothing after the tokens before, laws are zero.
    """

    logits: Tensor
    laws: Tensor
    num_sound: int


class TextLaw:
    """What tokens after a growing text are drawn by: the shaped law of the model, under penalties and a constraint.

    `written`: the generated tokens, a list that others append to. Presence and frequency penalties are OpenAI's: they
    count generated tokens and are taken from logits. What the constraint does not admit after the text has probability
    zero. Both come before all that a shape does. Behind a stop token nothing is constrained, and nothing counts.
    """

    def __init__(self, options: Options, written: Sequence[int], matcher: Matcher | None = None) -> None:
        self._options, self._written, self._matcher = options, written, matcher
        self._stop_token_ids = frozenset(options.stop_token_ids or ())
        self._num_read = 0

    @classmethod
    def of(cls, options: Options, written: Sequence[int], tokenizer: Tokenizer) -> "TextLaw":
        """Return the law of a request; raises UsageError for a constraint that cannot be compiled."""
        constraint = options.constraint
        matcher = None if constraint is None else constraint.matcher(tokenizer, options.stop_token_ids or ())
        return cls(options, written, matcher)

    @property
    def reads_text(self) -> bool:
        """Whether the law at a place depends on the tokens before it in other ways than the model's own does."""
        return self._options.penalises or self._matcher is not None

    @property
    def is_constrained(self) -> bool:
        """Whether tokens have to be decided from left to right, each for what it makes of the text."""
        return self._matcher is not None

    def laws(self, logits: Tensor, tokens: Sequence[int] = ()) -> Tensor:
        """Return the laws after the text and ever more of `tokens`: (n, V) logits, n - 1 tokens -> (n, V) float64.

        A law is zero where a constraint leaves no token. Raises FailureError where that is so after the text itself.
        """
        if not self.reads_text:
            return sampling_law(logits, self._options)
        return self._walk(logits, lambda place, _: tokens[place]).laws

    def draw(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token from each of (n, V) logits, every one under the law after those before it.

        Returns (n,) tokens and their (n, V) laws, as in `laws`. `noise`: (n,) uniforms.
        """
        if not self.reads_text:
            law = sampling_law(logits, self._options)
            return draw(law, noise), law
        tokens, walk = self._draw(logits, noise)
        return tokens, walk.laws

    def propose(self, logits: Tensor, noise: Tensor, ahead: Sequence[int]) -> tuple[Candidates, int]:
        """Draw a candidate from each of (n, V) logits of open canvas places; say how many of them could be taken.

        `ahead`: the tokens that a canvas has decided behind its first open place. Candidates do not see each other, but
        under a constraint each follows the one before it.
        """
        if not self.is_constrained:
            return propose(self.after(logits, ahead), self._options, noise), len(logits)
        tokens, walk = self._draw(logits, noise)
        return appraise(walk.logits, self._options, tokens), walk.num_sound

    def after(self, logits: Tensor, tokens: Sequence[int] = ()) -> Tensor:
        """Return (..., V) logits with the penalties for the text and for `tokens` taken off."""
        if not self._options.penalises or not (self._written or tokens):
            return logits
        counts = Counter([*self._written, *tokens])
        index = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        penalties = self._options.presence_penalty + self._options.frequency_penalty * times
        return logits.index_add(-1, index, -penalties.expand(*logits.shape[:-1], -1))

    def weighed(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Return what the law after the text and `tokens` is shaped from: (n, V) logits, n - 1 tokens -> (V,) logits.

        Penalties are taken off, and what a constraint does not admit is -inf; all is where it leaves no token.
        """
        if not self.is_constrained:
            return self.after(logits[-1], tokens)
        walk = self._walk(logits, lambda place, _: tokens[place])
        return (
            walk.logits[-1] if walk.num_sound == len(logits) else torch.full_like(walk.logits[-1], -torch.inf)
        )

    def _draw(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, _Walk]:
        drawn: list[Tensor] = []

        def choose(place: int, law: Tensor) -> int:
            drawn.append(draw(law[None], noise[place : place + 1].to(law.device))[0])
            return int(drawn[-1])

        walk = self._walk(logits, choose)
        choose(len(drawn), walk.laws[-1])
        return torch.stack(drawn), walk

    def _walk(self, logits: Tensor, choose: Callable[[int, Tensor], int]) -> _Walk:
        """Go from place to place; `choose` says, given a place's law, which token the next ones follow."""
        matcher = self._read()
        tokens: list[int] = []
        found, laws = [], []
        num_sound, is_ended = len(logits), False
        for place, row in enumerate(logits):
            here = row
            if num_sound == len(logits) and not is_ended:
                try:
                    here = _admitted(self.after(row, tokens), matcher)
                except FailureError:
                    if not place:
                        raise
                    num_sound = place
            law = sampling_law(here, self._options)
            found.append(here)
            laws.append(law if num_sound == len(logits) else torch.zeros_like(law))
            if place + 1 == len(logits):
                break
            tokens.append(choose(place, laws[-1]))
            is_ended = is_ended or tokens[-1] in self._stop_token_ids
            if matcher is not None and num_sound == len(logits) and not is_ended:
                matcher.consume(tokens[-1])
        return _Walk(torch.stack(found), torch.stack(laws), num_sound)

    def _read(self) -> Matcher | None:
        """Let the matcher read what was written since it was last asked, and return one to go ahead with."""
        if self._matcher is None:
            return None
        for token in self._written[self._num_read :]:
            self._matcher.consume(token)
        self._num_read = len(self._written)
        return self._matcher.fork()


def _admitted(logits: Tensor, matcher: Matcher | None) -> Tensor:
    """Return (V,) logits of -inf wherever the constraint does not admit a token."""
    if matcher is None:
        return logits
    logits = logits.masked_fill(~matcher.admitted(len(logits)).to(logits.device), -torch.inf)
    if not (logits > -torch.inf).any():
        raise FailureError(NO_TOKEN, "does it ask for characters that the vocabulary lacks?")
    return logits
