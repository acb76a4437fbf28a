"""Markov chains: a data law whose entropies, conditionals and decoding errors are exact at any length."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.denoising import DenoiserFunction, Prediction
from unmask.diffusion.masked import Masked
from unmask.diffusion.process import Process

_LEAST_EXPECTED = 5.0
"""Cells of which fewer are expected are counted together, or the statistic is not distributed as it should be."""


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's statistic, its degrees of freedom, and how often chance alone gives a higher one."""

    statistic: float
    degrees: int
    p_value: float


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """A law over sequences of K tokens: `initial` (K,), `transition` (K, K) with rows that sum to one, float64."""

    initial: Tensor
    transition: Tensor

    def __post_init__(self) -> None:
        size = len(self.initial)
        if self.transition.shape != (size, size):
            raise ValueError(f"a transition of shape {tuple(self.transition.shape)} for {size} tokens")
        for law in (self.initial, *self.transition):
            if law.dtype != torch.float64 or (law < 0).any() or abs(float(law.sum()) - 1) > 1e-9:
                raise ValueError(f"{law} is no float64 law: it sums to {float(law.sum()):.12g}")

    @classmethod
    def stationary(cls, transition: Tensor) -> "MarkovChain":
        """Return the chain (K, K) that starts from its stationary law, which must be unique."""
        # law = law T and sum(law) = 1, in one regular system: law (I - T + J) = (1, ..., 1), J all ones.
        system = torch.eye(len(transition), dtype=torch.float64) - transition + 1
        law = torch.linalg.solve(system.T, torch.ones_like(transition[0])).clamp_min(0)
        return cls(law / law.sum(), transition)

    @classmethod
    def random(cls, vocab_size: int, generator: torch.Generator, *, sharpness: float = 2.0) -> "MarkovChain":
        """Draw a stationary chain with rows softmax(sharpness * normal)."""
        logits = torch.randn(vocab_size, vocab_size, dtype=torch.float64, generator=generator)
        return cls.stationary((sharpness * logits).softmax(-1))

    @property
    def vocab_size(self) -> int:
        return len(self.initial)

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw sequences: (num_rows, length) int64."""
        noise = torch.rand(num_rows, length, dtype=torch.float64, generator=generator)
        tokens = torch.empty(num_rows, length, dtype=torch.int64)
        law = self.initial.expand(num_rows, -1)
        for place in range(length):
            below = (noise[:, place, None] >= law.cumsum(-1)).sum(-1)
            tokens[:, place] = below.clamp_max(self.vocab_size - 1)
            law = self.transition[tokens[:, place]]
        return tokens

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Return the log-probability of sequences (..., L) in nats: (...)."""
        steps = self.transition.log()[tokens[..., :-1], tokens[..., 1:]]
        return self.initial.log()[tokens[..., 0]] + steps.sum(-1)

    def entropy(self, length: int) -> float:
        """Return the entropy of a sequence in nats."""
        return self.subset_entropy(range(length))

    def subset_entropy(self, positions: Sequence[int]) -> float:
        """Return the joint entropy of the tokens at increasing, distinct `positions`, in nats: it adds up over gaps."""
        if not positions:
            return 0.0
        law = self.initial @ torch.linalg.matrix_power(self.transition, positions[0])
        total = torch.special.entr(law).sum()
        for left, right in pairwise(positions):
            leap = torch.linalg.matrix_power(self.transition, right - left)
            total = total + law @ torch.special.entr(leap).sum(-1)
            law = law @ leap
        return float(total)

    def schedule_kl(self, rounds: Sequence[Sequence[int]]) -> float:
        """Return KL(law || law of decoding the given positions round by round), in nats.

        Each round draws its tokens independently from their exact conditionals given all earlier rounds. What that
        costs is the conditional total correlation of the round (arXiv 2608.25505).
        """
        known: list[int] = []
        total = 0.0
        for positions in rounds:
            before = self.subset_entropy(known)
            total += sum(self.subset_entropy(sorted([*known, place])) - before for place in positions)
            known = sorted([*known, *positions])
            total -= self.subset_entropy(known) - before
        return total

    def chi_square(self, tokens: Tensor, *, size: int) -> ChiSquare:
        """Compare the n-grams of `size` in sequences (B, L) with the chain: the last token's law given the others.

        Contexts are taken as they occur, so counts of overlapping n-grams are independent given them.
        """
        vocab_size = self.vocab_size
        grams = tokens.unfold(1, size, 1).reshape(-1, size)
        context = sum(grams[:, place] * vocab_size ** (size - 2 - place) for place in range(size - 1))
        counts = torch.bincount(context * vocab_size + grams[:, -1], minlength=vocab_size**size)
        counts = counts.view(-1, vocab_size).double()
        law = self.transition.repeat(len(counts) // vocab_size, 1)
        expected = counts.sum(-1, keepdim=True) * law
        statistic, degrees = 0.0, 0
        for seen, due in zip(counts.tolist(), expected.tolist(), strict=True):
            cells = _pooled(seen, due)
            statistic += sum((number - mean) ** 2 / mean for number, mean in cells)
            degrees += max(len(cells) - 1, 0)
        half = torch.tensor([degrees, statistic], dtype=torch.float64) / 2
        return ChiSquare(
            statistic, degrees, float(torch.special.gammaincc(half[0], half[1])) if degrees else 1.0
        )

    def predict(self, evidence: Tensor, prediction: Prediction) -> Tensor:
        """Return the exact law of every token, as log-probabilities (B, L, K) float64, by forward-backward.

        `evidence` (B, L, K) float64: how likely what is seen of a token is, for each value of the token.
        """
        forward, backward = torch.ones_like(evidence), torch.ones_like(evidence)
        length = evidence.shape[1]
        forward[:, 0] = self.initial
        for place in range(1, length):
            forward[:, place] = _normalised(forward[:, place - 1] * evidence[:, place - 1]) @ self.transition
        for place in reversed(range(length - 1)):
            backward[:, place] = (
                _normalised(evidence[:, place + 1] * backward[:, place + 1]) @ self.transition.T
            )
        others = forward * backward
        return _normalised(others * evidence if prediction == "posterior" else others).log()

    def denoiser(self, process: Process, prediction: Prediction | None = None) -> DenoiserFunction:
        """Return the perfect denoiser for noise of `process`; its kind is the process's own unless given."""
        kind = prediction or process.prediction

        def denoise(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
            return self.predict(_evidence(process, tokens, time), kind)

        return denoise


def _evidence(process: Process, tokens: Tensor, time: Tensor) -> Tensor:
    """Return q(x_t | x) up to a factor: (B, L, K). A mask says nothing of its token, at whatever time."""
    if isinstance(process, Masked):
        visible = tokens.clamp_max(process.vocab_size - 1)
        evidence = F.one_hot(visible, process.vocab_size).double()
    else:
        evidence = process.likelihood(tokens, time)
    return evidence.masked_fill(process.is_masked(tokens)[..., None], 1.0)


def _pooled(seen: Sequence[float], expected: Sequence[float]) -> list[tuple[float, float]]:
    """Put the cells of one context together, the rarest first, until enough is expected in each: (seen, expected)."""
    cells: list[tuple[float, float]] = []
    number = mean = 0.0
    for due, count in sorted(zip(expected, seen, strict=True)):
        number, mean = number + count, mean + due
        if mean >= _LEAST_EXPECTED:
            cells.append((number, mean))
            number = mean = 0.0
    if cells:
        last, due = cells[-1]
        cells[-1] = (last + number, due + mean)
    return cells


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
