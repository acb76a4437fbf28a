"""The kinds of items: what each asks of a model, and how its answers are scored."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from unmask.evaluation.scoring import (
    Answer,
    Generated,
    GenerationRequest,
    LikelihoodRequest,
    LogLikelihood,
    Request,
)
from unmask.evaluation.tasks.execution import run_program


@dataclass(frozen=True)
class Scored:
    """An item's scores by name, and what there is to say about them: why a program failed."""

    scores: Mapping[str, float]
    remark: str = ""


class Item(Protocol):
    """One question of a task."""

    @property
    def id(self) -> str:
        """A name that is unique in the task and stays with the item."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """What is asked of the model."""

    def score(self, answers: Sequence[Answer]) -> Scored:
        """Score the answers to `requests`, in their order."""


@dataclass(frozen=True)
class MultipleChoice:
    """Choices of which the likeliest after its context is the model's answer.

    Every choice has its own context; the same for all in most tasks. Scores: "acc" by log-likelihood, "acc_norm" by
    log-likelihood per character and "acc_bytes" per byte, as lm-evaluation-harness has them, and, where there is an
    `unconditional` context, "acc_pmi" by the gain over it (pointwise mutual information; Brown et al. 2020, arXiv
    2005.14165, section 2.4; Gu et al. 2024, arXiv 2406.08446).
    """

    id: str
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    unconditional: str | None = None

    @property
    def requests(self) -> tuple[Request, ...]:
        """The choices after their contexts; then, where it counts, after the unconditional one."""
        free = () if self.unconditional is None else (self.unconditional,) * len(self.choices)
        pairs = zip((*self.contexts, *free), (*self.choices, *(self.choices if free else ())), strict=True)
        return tuple(LikelihoodRequest(context, f" {choice}") for context, choice in pairs)

    def score(self, answers: Sequence[Answer]) -> Scored:
        """Compare the likeliest choice with the right one; of equals the first."""
        nats = [answer.nats for answer in answers if isinstance(answer, LogLikelihood)]
        conditional, free = nats[: len(self.choices)], nats[len(self.choices) :]
        by = {
            "acc": conditional,
            "acc_norm": _per_unit(conditional, [len(choice) for choice in self.choices]),
            "acc_bytes": _per_unit(conditional, [len(choice.encode()) for choice in self.choices]),
        }
        if free:
            by["acc_pmi"] = [given - without for given, without in zip(conditional, free, strict=True)]
        return Scored({name: float(values.index(max(values)) == self.gold) for name, values in by.items()})


@dataclass(frozen=True)
class LastWord:
    """A passage whose last word is to be predicted: "nll" in nats, and "acc" if each of its tokens is the likeliest.

    A likelihood that does not tell what is likeliest, such as a bound, gives no "acc".
    """

    id: str
    context: str
    word: str

    @property
    def requests(self) -> tuple[Request, ...]:
        """The word after the context."""
        return (LikelihoodRequest(self.context, f" {self.word}"),)

    def score(self, answers: Sequence[Answer]) -> Scored:
        """Take the scores from the word's likelihood."""
        (answer,) = answers
        assert isinstance(answer, LogLikelihood)  # what was asked for
        known = {} if answer.is_greedy is None else {"acc": float(answer.is_greedy)}
        return Scored({**known, "nll": -answer.nats})


@dataclass(frozen=True)
class WrittenAnswer:
    """A question that the model answers in writing: "exact_match" if `accepts` takes the text."""

    id: str
    request: GenerationRequest
    accepts: Callable[[str], bool]

    @property
    def requests(self) -> tuple[Request, ...]:
        """The question."""
        return (self.request,)

    def score(self, answers: Sequence[Answer]) -> Scored:
        """Ask the checker."""
        return Scored({"exact_match": float(self.accepts(_text(answers)))})


@dataclass(frozen=True)
class Program:
    """Code to complete: "pass@1" if the program with it in the place between `head` and `tail` runs to its end.

    `part`: what of the written text is the answer, all of it unless given.
    """

    id: str
    request: GenerationRequest
    head: str
    tail: str
    part: Callable[[str], str] = str

    @property
    def requests(self) -> tuple[Request, ...]:
        """The code so far, or the description of what it must do."""
        return (self.request,)

    def score(self, answers: Sequence[Answer]) -> Scored:
        """Run the program, locked down."""
        outcome = run_program(self.head + self.part(_text(answers)) + self.tail)
        return Scored({"pass@1": float(outcome.passed)}, outcome.reason)


def _text(answers: Sequence[Answer]) -> str:
    (answer,) = answers
    assert isinstance(answer, Generated)  # what was asked for
    return answer.text


def _per_unit(nats: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Divide by length; an empty choice, which has none, cannot win."""
    return [value / length if length else -math.inf for value, length in zip(nats, lengths, strict=True)]
