"""How an endpoint words what the engine tells: as one answer, or as the chunks of a stream."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from unmask.decoding.generation import Generation
from unmask.serving.answers import (
    Account,
    AssistantMessage,
    CallDelta,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    FinishReason,
    Frame,
    FunctionDelta,
    Usage,
    WrittenCall,
    WrittenFunction,
)
from unmask.serving.calls import Call, CallPiece
from unmask.serving.logprobs import Told, chat_logprobs, completion_logprobs, told_of
from unmask.serving.translate import Plan
from unmask.tokenizer import Tokenizer


@dataclass(frozen=True)
class Head:
    """What an answer and each of its chunks say first. `fingerprint`: of the model's weights."""

    request_id: str
    model: str
    fingerprint: str
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))


class Wording(Protocol):
    """One answer to a request, or its stream of chunks; `index` is the number of an answer."""

    def whole(self, generations: Sequence[Generation]) -> BaseModel:
        """Return the answer to the request."""

    def opening(self, index: int) -> BaseModel | None:
        """Return the chunk that begins an answer."""

    def piece(self, index: int, text: str, told: Sequence[Told], frame: Frame | None) -> BaseModel | None:
        """Return the chunk of some more text, with the tokens it shows; `None` where that tells a client nothing."""

    def ending(self, index: int, generation: Generation) -> BaseModel:
        """Return the chunk that ends an answer."""

    def usage(self, num_tokens: int) -> BaseModel:
        """Return the chunk with the token counts of the request; `num_tokens`: of all answers."""


class CompletionWording:
    """As /v1/completions words it."""

    def __init__(self, head: Head, plan: Plan) -> None:
        self._plan, self._tokenizer = plan, head.tokenizer
        self._head = Completion(
            id=f"cmpl-{head.request_id}",
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=[],
        )

    def whole(self, generations: Sequence[Generation]) -> Completion:
        choices = [
            CompletionChoice(
                index=index,
                text=self._plan.openings[index] + generation.text,
                finish_reason=generation.finish_reason,
                logprobs=self._logprobs(told_of(self._tokenizer, generation)),
                unmask=account(generation),
            )
            for index, generation in enumerate(generations)
        ]
        return self._with(choices, usage_of(self._plan, _num_tokens(generations)))

    def opening(self, index: int) -> Completion | None:
        text = self._plan.openings[index]
        return self.piece(index, text, (), None) if text else None

    def piece(self, index: int, text: str, told: Sequence[Told], frame: Frame | None) -> Completion:
        logprobs = self._logprobs(told)
        choice = CompletionChoice(index=index, text=text, finish_reason=None, logprobs=logprobs, unmask=frame)
        return self._with([choice])

    def ending(self, index: int, generation: Generation) -> Completion:
        choice = CompletionChoice(
            index=index, text="", finish_reason=generation.finish_reason, unmask=account(generation)
        )
        return self._with([choice])

    def usage(self, num_tokens: int) -> Completion:
        return self._with([], usage_of(self._plan, num_tokens))

    def _logprobs(self, told: Sequence[Told]) -> CompletionLogprobs | None:
        return completion_logprobs(self._tokenizer, told) if told else None

    def _with(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return self._head.model_copy(update={"choices": choices, "usage": usage})


class ChatWording:
    """As /v1/chat/completions words it."""

    def __init__(self, head: Head, plan: Plan) -> None:
        self._plan, self._tokenizer = plan, head.tokenizer
        self._calls = [Call() for _ in plan.orders]
        self._head = ChatChunk(
            id=f"chatcmpl-{head.request_id}",
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=[],
        )

    def whole(self, generations: Sequence[Generation]) -> ChatCompletion:
        head = self._head
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=[self._choice(index, generation) for index, generation in enumerate(generations)],
            usage=usage_of(self._plan, _num_tokens(generations)),
        )

    def opening(self, index: int) -> ChatChunk:
        return self._with(index, Delta(role="assistant", content=None if self._plan.is_call else ""))

    def piece(self, index: int, text: str, told: Sequence[Told], frame: Frame | None) -> ChatChunk | None:
        delta = Delta(content=text)
        if self._plan.is_call:
            delta = self._call_delta(index, self._calls[index].push(text))
            if delta == Delta() and frame is None:
                return None
        return self._with(index, delta, extra=frame, logprobs=self._logprobs(told))

    def ending(self, index: int, generation: Generation) -> ChatChunk:
        delta = Delta()
        if self._plan.is_call:
            is_whole = generation.finish_reason == "stop"
            delta = self._call_delta(index, self._calls[index].finish(is_whole=is_whole))
        return self._with(index, delta, extra=account(generation), finish_reason=self._reason(generation))

    def usage(self, num_tokens: int) -> ChatChunk:
        return self._head.model_copy(update={"usage": usage_of(self._plan, num_tokens)})

    def _choice(self, index: int, generation: Generation) -> ChatChoice:
        message = AssistantMessage(content=generation.text)
        if self._plan.is_call:
            call = Call()
            pieces = [call.push(generation.text), call.finish(is_whole=generation.finish_reason == "stop")]
            name = next((piece.name for piece in pieces if piece is not None and piece.name), "")
            arguments = "".join(piece.arguments for piece in pieces if piece is not None)
            written = WrittenFunction(name=name, arguments=arguments)
            calls = [WrittenCall(id=self._call_id(index), function=written)] if name else None
            message = AssistantMessage(content=None, tool_calls=calls)
        return ChatChoice(
            index=index,
            message=message,
            finish_reason=self._reason(generation),
            logprobs=self._logprobs(told_of(self._tokenizer, generation)),
            unmask=account(generation),
        )

    def _reason(self, generation: Generation) -> FinishReason:
        is_called = self._plan.is_call and generation.finish_reason == "stop"
        return "tool_calls" if is_called else generation.finish_reason

    def _call_id(self, index: int) -> str:
        return f"call_{self._head.id.removeprefix('chatcmpl-')}_{index}"

    def _call_delta(self, index: int, piece: CallPiece | None) -> Delta:
        if piece is None:
            return Delta()
        function = FunctionDelta(name=piece.name, arguments=piece.arguments)
        call = CallDelta(id=self._call_id(index) if piece.name else None, function=function)
        return Delta(tool_calls=[call])

    def _logprobs(self, told: Sequence[Told]) -> ChatLogprobs | None:
        return chat_logprobs(self._tokenizer, told) if told else None

    def _with(
        self,
        index: int,
        delta: Delta,
        *,
        extra: Account | Frame | None = None,
        finish_reason: FinishReason | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> ChatChunk:
        choice = ChunkChoice(
            index=index, delta=delta, finish_reason=finish_reason, logprobs=logprobs, unmask=extra
        )
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
