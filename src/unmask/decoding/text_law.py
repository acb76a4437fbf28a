"""Laws of next tokens that depend on the text before them."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unmask.decoding.candidates import draw, sampling_law
from unmask.decoding.options import Options


class TextLaw:
    """What tokens after a growing text are drawn by: the shaped law of the model, with penalties for what was written.

    `written`: the generated tokens, a list that others append to. Presence and frequency penalties are OpenAI's: they
    count generated tokens and are taken from logits, before all that a shape does.
    """

    def __init__(self, options: Options, written: Sequence[int]) -> None:
        self._options, self._written = options, written

    @property
    def reads_text(self) -> bool:
        """Whether the law at a place depends on the tokens before it in other ways than the model's own does."""
        return self._options.penalises

    def laws(self, logits: Tensor, tokens: Sequence[int] = ()) -> Tensor:
        """Return the laws after the text and ever more of `tokens`: (n, V) logits, n - 1 tokens -> (n, V) float64."""
        return self._walk(logits, lambda place, _: tokens[place])

    def draw(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token from each of (n, V) logits, every one under the law after those before it.

        Returns (n,) tokens and their (n, V) laws. `noise`: (n,) uniforms.
        """
        if not self.reads_text:
            law = sampling_law(logits, self._options)
            return draw(law, noise), law
        drawn: list[Tensor] = []

        def choose(place: int, law: Tensor) -> int:
            drawn.append(draw(law[None], noise[place : place + 1])[0])
            return int(drawn[-1])

        laws = self._walk(logits, choose)
        choose(len(drawn), laws[-1])
        return torch.stack(drawn), laws

    def after(self, logits: Tensor, tokens: Sequence[int] = ()) -> Tensor:
        """Return (..., V) logits with the penalties for the text and for `tokens` taken off."""
        if not self._options.penalises or not (self._written or tokens):
            return logits
        counts = Counter([*self._written, *tokens])
        index = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        penalties = self._options.presence_penalty + self._options.frequency_penalty * times
        return logits.index_add(-1, index, -penalties.expand(*logits.shape[:-1], -1))

    def _walk(self, logits: Tensor, choose: Callable[[int, Tensor], int]) -> Tensor:
        """Return the laws of places in a row; `choose` says, given a place's law, which token the next ones follow."""
        if not self.reads_text:
            return sampling_law(logits, self._options)
        tokens: list[int] = []
        laws: list[Tensor] = []
        for place, row in enumerate(logits):
            laws.append(sampling_law(self.after(row, tokens), self._options))
            if place + 1 < len(logits):
                tokens.append(choose(place, laws[-1]))
        return torch.stack(laws)
