"""From the requests of the API to orders for the engine."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES, Rule
from unmask.errors import UsageError
from unmask.serving.errors import ServingError
from unmask.serving.fields import refuse_by_mode
from unmask.serving.protocol import ChatMessage, ChatRequest, CompletionRequest, Generating
from unmask.serving.settings import Settings
from unmask.serving.ticket import Order
from unmask.tokenizer import Message

_SEEDS = 2**31


@dataclass(frozen=True)
class Plan:
    """The orders of a request, all answers to its first prompt before those to its second.

    `openings`: the text that each answer begins with, empty unless its prompt is to be told again. `num_prompt_tokens`:
    of all prompts, each counted once.
    """

    orders: tuple[Order, ...]
    openings: tuple[str, ...]
    num_prompt_tokens: int


class Translator:
    """Makes plans of requests for one model; raises ServingError for what the model or the mode cannot honour.

    `capacity`: most tokens of a prompt and its answer together.
    """

    def __init__(self, model: LanguageModel, settings: Settings, *, capacity: int) -> None:
        self._model, self._settings, self.capacity = model, settings, capacity

    def completion(self, request: CompletionRequest) -> Plan:
        """Return the plan of a completion: bare prompts, without a chat template."""
        prompts = [self._prompt_ids(prompt) for prompt in _prompts(request)]
        openings = [self._opening(prompt) if request.echo else "" for prompt in _prompts(request)]
        return self._plan(request, prompts, openings, request.max_tokens)

    def chat(self, request: ChatRequest) -> Plan:
        """Return the plan of an answer to a conversation."""
        limit = request.max_completion_tokens or request.max_tokens
        return self._plan(request, [self.conversation_ids(request.messages)], [""], limit)

    def conversation_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a conversation in the model's template."""
        try:
            return self._model.encode([_message(message) for message in messages])
        except UsageError as error:
            raise ServingError.of_usage(error, param="messages") from error

    def _plan(
        self, request: Generating, prompts: list[list[int]], openings: list[str], limit: int | None
    ) -> Plan:
        mode = request.mode or self._settings.mode
        refuse_by_mode(request, mode)
        if len(prompts) * request.n > self._settings.max_choices:
            raise ServingError(
                400,
                f"{len(prompts)} prompt(s) with n={request.n} make {len(prompts) * request.n} answers; "
                f"this server writes at most {self._settings.max_choices} for a request",
                param="n",
            )
        try:
            options = self._model.resolve(
                Options(
                    mode="speculative" if mode == "auto" else mode,
                    rule=_rule(request.rule),
                    block_length=request.block_length,
                    num_steps=request.num_steps,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    top_k=request.top_k,
                    seed=secrets.randbelow(_SEEDS) if request.seed is None else request.seed,
                    stop=_texts(request.stop),
                    stop_token_ids=None if request.stop_token_ids is None else tuple(request.stop_token_ids),
                )
            )
        except UsageError as error:
            raise ServingError.of_usage(error) from error
        orders = [
            Order(
                tuple(prompt),
                replace(options, max_tokens=self._room(prompt, limit), seed=options.seed + number),
                is_planned=mode == "auto",
            )
            for prompt in prompts
            for number in range(request.n)
        ]
        return Plan(
            tuple(orders),
            tuple(opening for opening in openings for _ in range(request.n)),
            sum(map(len, prompts)),
        )

    def _room(self, prompt: Sequence[int], limit: int | None) -> int:
        """Return how many tokens an answer may have: the limit, or else what fits."""
        fitting = self.capacity - len(prompt)
        most = self._settings.max_tokens
        if limit is not None and most is not None and limit > most:
            raise ServingError(
                400, f"max_tokens={limit}: this server writes at most {most}", param="max_tokens"
            )
        if fitting < (limit or 1):
            raise ServingError(
                400,
                f"the prompt has {len(prompt)} tokens and {limit or 1} were asked for; "
                f"this server holds {self.capacity} for both together",
                param="max_tokens" if fitting > 0 else None,
                code="context_length_exceeded",
            )
        return min(limit or fitting, most or fitting)

    def _prompt_ids(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            if not prompt:
                raise ServingError(400, "prompt: a list of token ids is empty", param="prompt")
            return prompt
        try:
            return self._model.encode(prompt, raw=True)
        except UsageError as error:
            raise ServingError.of_usage(error, param="prompt") from error

    def _opening(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._model.tokenizer.decode(prompt)


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    """Return the prompts of a request, however many it gave and in whichever way."""
    prompt = request.prompt
    if not prompt and isinstance(prompt, list):
        raise ServingError(400, "prompt: the list is empty", param="prompt")
    if isinstance(prompt, str):
        return [prompt]
    ids = [token for token in prompt if isinstance(token, int)]
    return [ids] if ids else [each for each in prompt if not isinstance(each, int)]


def _message(message: ChatMessage) -> Message:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": message.role, "content": text}


def _rule(text: str | None) -> Rule | None:
    if text is None:
        return None
    try:
        return RULES.parse(text)
    except UsageError as error:
        raise ServingError.of_usage(error, param="rule") from error


def _texts(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
