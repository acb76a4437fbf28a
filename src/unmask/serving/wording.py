"""How an endpoint words what the engine tells: as one answer, or as the chunks of a stream."""

import time
from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel

from unmask.decoding.generation import Generation
from unmask.serving.answers import (
    Account,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Completion,
    CompletionChoice,
    Delta,
    FinishReason,
    Frame,
    Usage,
)
from unmask.serving.translate import Plan


class Wording(Protocol):
    """One answer to a request, or its stream of chunks; `index` is the number of an answer."""

    def whole(self, generations: Sequence[Generation]) -> BaseModel:
        """Return the answer to the request."""

    def opening(self, index: int) -> BaseModel | None:
        """Return the chunk that begins an answer."""

    def piece(self, index: int, text: str, frame: Frame | None) -> BaseModel:
        """Return the chunk of some more text."""

    def ending(self, index: int, generation: Generation) -> BaseModel:
        """Return the chunk that ends an answer."""

    def usage(self, num_tokens: int) -> BaseModel:
        """Return the chunk with the token counts of the request; `num_tokens`: of all answers."""


class CompletionWording:
    """As /v1/completions words it."""

    def __init__(self, request_id: str, model: str, fingerprint: str, plan: Plan) -> None:
        self._plan = plan
        self._head = Completion(
            id=f"cmpl-{request_id}",
            created=int(time.time()),
            model=model,
            system_fingerprint=fingerprint,
            choices=[],
        )

    def whole(self, generations: Sequence[Generation]) -> Completion:
        choices = [
            CompletionChoice(
                index=index,
                text=self._plan.openings[index] + generation.text,
                finish_reason=generation.finish_reason,
                unmask=account(generation),
            )
            for index, generation in enumerate(generations)
        ]
        return self._with(choices, usage_of(self._plan, _num_tokens(generations)))

    def opening(self, index: int) -> Completion | None:
        text = self._plan.openings[index]
        return self.piece(index, text, None) if text else None

    def piece(self, index: int, text: str, frame: Frame | None) -> Completion:
        return self._with([CompletionChoice(index=index, text=text, finish_reason=None, unmask=frame)])

    def ending(self, index: int, generation: Generation) -> Completion:
        choice = CompletionChoice(
            index=index, text="", finish_reason=generation.finish_reason, unmask=account(generation)
        )
        return self._with([choice])

    def usage(self, num_tokens: int) -> Completion:
        return self._with([], usage_of(self._plan, num_tokens))

    def _with(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return self._head.model_copy(update={"choices": choices, "usage": usage})


class ChatWording:
    """As /v1/chat/completions words it."""

    def __init__(self, request_id: str, model: str, fingerprint: str, plan: Plan) -> None:
        self._plan = plan
        self._head = ChatChunk(
            id=f"chatcmpl-{request_id}",
            created=int(time.time()),
            model=model,
            system_fingerprint=fingerprint,
            choices=[],
        )

    def whole(self, generations: Sequence[Generation]) -> ChatCompletion:
        head = self._head
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content=generation.text),
                    finish_reason=generation.finish_reason,
                    unmask=account(generation),
                )
                for index, generation in enumerate(generations)
            ],
            usage=usage_of(self._plan, _num_tokens(generations)),
        )

    def opening(self, index: int) -> ChatChunk:
        return self._with(index, Delta(role="assistant", content=""))

    def piece(self, index: int, text: str, frame: Frame | None) -> ChatChunk:
        return self._with(index, Delta(content=text), extra=frame)

    def ending(self, index: int, generation: Generation) -> ChatChunk:
        return self._with(index, Delta(), extra=account(generation), finish_reason=generation.finish_reason)

    def usage(self, num_tokens: int) -> ChatChunk:
        return self._head.model_copy(update={"usage": usage_of(self._plan, num_tokens)})

    def _with(
        self,
        index: int,
        delta: Delta,
        *,
        extra: Account | Frame | None = None,
        finish_reason: FinishReason | None = None,
    ) -> ChatChunk:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=finish_reason, unmask=extra)
        return self._head.model_copy(update={"choices": [choice]})


def account(generation: Generation) -> Account:
    """Return what an answer took."""
    return Account(
        mode=generation.mode,
        seed=generation.seed,
        num_forwards=generation.num_forwards,
        num_decode_forwards=generation.num_decode_forwards,
        tokens_per_forward=generation.tokens_per_forward,
        accepted_lengths=list(generation.accepted_lengths),
        seconds={phase: round(seconds, 6) for phase, seconds in generation.seconds.items()},
    )


def usage_of(plan: Plan, num_tokens: int) -> Usage:
    """Return the token counts of a request."""
    prompt = plan.num_prompt_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=num_tokens, total_tokens=prompt + num_tokens)


def _num_tokens(generations: Sequence[Generation]) -> int:
    return sum(generation.num_tokens for generation in generations)
