"""Continuations as tokens, and the ways to say how probable they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.evaluation.scoring import LogLikelihood


@dataclass(frozen=True)
class Continuation:
    """Tokens of which the last `num_scored` are to be predicted; at least one comes before them."""

    tokens: tuple[int, ...]
    num_scored: int

    @property
    def scored(self) -> tuple[int, ...]:
        return self.tokens[-self.num_scored :]


class Likelihood(Protocol):
    """How probable continuations are under one model, exactly or by a bound."""

    def __call__(self, continuations: Sequence[Continuation]) -> list[LogLikelihood]:
        """Return the likelihood of each, in order; one does not depend on what others it is given with."""


class LikelihoodKind(Protocol):
    """A way to measure likelihoods, say exactly along the causal stream: a dataclass of numbers, found by name."""

    def prepare(self, model: LanguageModel, options: Options) -> Likelihood:
        """Return it for one model that decodes with these options, resolved; UsageError where it does not fit."""
