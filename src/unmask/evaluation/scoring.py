"""What a task asks of a model and what it gets back: the three methods of lm-evaluation-harness, as a protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class LikelihoodRequest:
    """A continuation whose likelihood after a context is wanted; the space between them belongs to the continuation."""

    context: str
    continuation: str


@dataclass(frozen=True)
class GenerationRequest:
    """A context to write on from, for at most `max_tokens`, until one of some texts appears.

    `gap` makes it infilling: the text that follows, and how many tokens are missing before it.
    """

    context: str
    until: tuple[str, ...]
    max_tokens: int
    gap: "Gap | None" = None


@dataclass(frozen=True)
class Gap:
    """What follows the place to fill, and what was there, which tells its length in tokens and nothing else."""

    after: str
    removed: str


Request = LikelihoodRequest | GenerationRequest


@dataclass(frozen=True)
class LogLikelihood:
    """The log-likelihood of a continuation in nats, and whether each of its tokens was the likeliest, None if unknown.

    `num_dropped`: tokens cut off at the context's beginning because the model's window is too short. `standard_error`:
    in nats, where `nats` are an estimate; `None` where they are exact.
    """

    nats: float
    is_greedy: bool | None
    num_tokens: int
    num_dropped: int = 0
    standard_error: float | None = None


@dataclass(frozen=True)
class Generated:
    """What a model wrote, without the text that ended it, and what it took; see `Generation` for the counts."""

    text: str
    num_tokens: int
    num_forwards: int
    num_decode_forwards: int
    num_dropped: int = 0


Answer = LogLikelihood | Generated


class Scorer(Protocol):
    """A model as tasks see it. Answers come in the order of the requests."""

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> list[LogLikelihood]:
        """Return the likelihood of each continuation after its context; an empty context is a text's beginning."""

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[LogLikelihood]:
        """Return the likelihood of whole texts, each token after as many tokens as the model's window holds."""

    def generate_until(self, requests: Sequence[GenerationRequest]) -> list[Generated]:
        """Write on from each context."""
