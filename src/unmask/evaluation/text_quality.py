"""What an independent model thinks of a text, and how varied the text is: neither says much without the other."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.decoding.language_model import LanguageModel
from unmask.errors import UsageError
from unmask.evaluation.average import Average, average
from unmask.layout import causal_layout


@dataclass(frozen=True)
class Judged:
    """One text as a judge sees it: its nats behind the prompt, its bytes, and its mean state, of unit length."""

    nats: float
    num_bytes: int
    state: tuple[float, ...]


class TextJudge:
    """A causal model that reads what another wrote. Raises UsageError for one that predicts no next tokens."""

    def __init__(self, model: LanguageModel) -> None:
        if not model.denoiser.predicts_next:
            raise UsageError(
                f"{model.checkpoint.card.name} predicts no next tokens, so it cannot judge",
                "choose another --judge",
            )
        self._model = model

    @torch.inference_mode()
    def __call__(self, prompt: str, text: str) -> Judged | None:
        """Judge an answer to a prompt, which the judge reads in its own chat template; None for no text.

        What its window does not hold of the prompt's beginning is left out. Raise UsageError where not even the text
        fits.
        """
        denoiser, window = self._model.denoiser, self._model.denoiser.transformer.config.max_positions
        scored = self._model.tokenizer.encode(text)
        if not scored:
            return None
        if len(scored) >= window:
            raise UsageError(
                f"a text of {len(scored)} tokens does not fit the judge's window of {window}",
                "write shorter texts",
            )
        tokens = [*self._model.encode(prompt), *scored][-window:]
        device = denoiser.transformer.device
        hidden = denoiser.transformer(torch.tensor(tokens, device=device), causal_layout(len(tokens)))
        logits = denoiser.head(hidden[-len(scored) - 1 : -1])
        wanted = torch.tensor(scored, device=device)[:, None]
        nats = (logits.logsumexp(-1) - logits.gather(-1, wanted)[:, 0]).double().sum()
        state = hidden[-len(scored) :].double().mean(0)
        return Judged(float(nats), len(text.encode()), _rounded(state / state.norm()))


def _rounded(state: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 5) for value in state.tolist())


@dataclass(frozen=True)
class TextQuality:
    """Averages over texts. `bits_per_byte`: of the judge, per byte of all texts.

    `entropy`: of the counts of a text's own tokens, in nats, mean over texts. `distinct`: n-grams that differ over
    n-grams, in all texts together, for n = 1, 2, 3. `diversity`: one minus the mean cosine of the judge's states of two
    texts; None for fewer than two.
    """

    bits_per_byte: Average | None
    entropy: Average | None
    distinct: tuple[float, ...]
    diversity: float | None

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], judged: Sequence[Judged | None]) -> "TextQuality":
        """Sum up texts, as token ids of the model that wrote them, and what the judge said of each."""
        known = [one for one in judged if one is not None]
        bits = average([one.nats for one in known], [one.num_bytes for one in known])
        entropies = [unigram_entropy(text) for text in texts if text]
        return cls(
            None if bits is None else bits.scaled(1 / math.log(2)),
            average(entropies, [1.0] * len(entropies)),
            tuple(distinct(texts, size) for size in (1, 2, 3)),
            diversity([one.state for one in known]),
        )


def unigram_entropy(tokens: Sequence[int]) -> float:
    """Return the entropy, in nats, of how often each token occurs in a text: at most the log of its length."""
    shares = [count / len(tokens) for count in Counter(tokens).values()]
    return -sum(share * math.log(share) for share in shares)


def distinct(texts: Sequence[Sequence[int]], size: int) -> float:
    """Return the share of different n-grams of `size` among all n-grams of some texts; 0 where there are none.

    Counted over all texts together, so that a text which is written again and again shows (Li et al. 2015,
    arXiv 1510.03055).
    """
    grams = [tuple(text[i : i + size]) for text in texts for i in range(len(text) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def diversity(states: Sequence[Sequence[float]]) -> float | None:
    """Return one minus the mean cosine of all pairs of unit vectors; None for fewer than two."""
    count = len(states)
    if count < 2:
        return None
    total = torch.tensor(states, dtype=torch.float64).sum(0).square().sum()
    return 1 - (float(total) - count) / (count * (count - 1))
