"""Continuations as tokens, and the ways to say how probable they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

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


def rolling(before: Sequence[int], tokens: Sequence[int], length: int) -> Iterator[Continuation]:
    """Yield tokens in stretches of `length`, each after the `length` that end before its last one."""
    whole = [*before, *tokens]
    for begin in range(len(before), len(whole), length):
        end = min(begin + length, len(whole))
        yield Continuation(tuple(whole[max(0, end - length - 1) : end]), end - begin)


class Likelihood(Protocol):
    """How probable continuations are under one model, exactly or by a bound."""

    def __call__(self, continuations: Sequence[Continuation]) -> list[LogLikelihood]:
        """Return the likelihood of each, in order; one does not depend on what others it is given with."""


class LikelihoodKind(Protocol):
    """A way to measure likelihoods, say exactly along the causal stream: a dataclass of numbers, found by name.

    `law`: what the numbers are, in words.
    """

    law: ClassVar[str]

    def prepare(self, model: LanguageModel, options: Options) -> Likelihood:
        """Return it for one model that decodes with these options, resolved; UsageError where it does not fit."""
