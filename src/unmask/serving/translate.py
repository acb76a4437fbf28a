"""From the requests of the API to orders for the engine."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unmask.decoding.constraint import Constraint
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES, Rule
from unmask.errors import UsageError
from unmask.serving.calls import call_constraint, instructions, spelled
from unmask.serving.errors import ServingError
from unmask.serving.fields import refuse_by_mode
from unmask.serving.formats import Grammar, JsonObject, JsonSchema, Regex, ResponseFormat
from unmask.serving.messages import ChatMessage
from unmask.serving.protocol import ChatRequest, CompletionRequest, Generating
from unmask.serving.settings import Settings
from unmask.serving.ticket import Order
from unmask.tokenizer import Message

_SEEDS = 2**31


@dataclass(frozen=True)
class Plan:
    """The orders of a request, all answers to its first prompt before those to its second.

    `openings`: the text that each answer begins with, empty unless its prompt is to be told again. `num_prompt_tokens`:
    of all prompts, each counted once. `is_call`: answers are calls of functions.
    """

    orders: tuple[Order, ...]
    openings: tuple[str, ...]
    num_prompt_tokens: int
    is_call: bool = False


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
        limit = request.max_tokens
        if limit is not None and "max_tokens" not in request.model_fields_set:
            limit = min(limit, self._settings.max_tokens or limit)
        return self._plan(
            request,
            prompts,
            openings,
            limit,
            num_logprobs=request.logprobs,
            constraint=_constraint(request.response_format),
        )

    def chat(self, request: ChatRequest) -> Plan:
        """Return the plan of an answer to a conversation."""
        limit = request.max_completion_tokens or request.max_tokens
        functions = request.functions_to_call
        opening = [{"role": "system", "content": instructions(functions)}] if functions else []
        return self._plan(
            request,
            [self._conversation_ids([*opening, *conversation(request.messages)])],
            [""],
            limit,
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            constraint=call_constraint(functions) if functions else _constraint(request.response_format),
            is_call=bool(functions),
        )

    def conversation_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a conversation in the model's template."""
        return self._conversation_ids(conversation(messages))

    def _conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        try:
            return self._model.encode(messages)
        except UsageError as error:
            raise ServingError.of_usage(error, param="messages") from error

    def _plan(
        self,
        request: Generating,
        prompts: list[list[int]],
        openings: list[str],
        limit: int | None,
        *,
        num_logprobs: int | None,
        constraint: Constraint | None,
        is_call: bool = False,
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
                    min_p=request.min_p,
                    logit_bias=_biases(request.logit_bias),
                    presence_penalty=request.presence_penalty,
                    frequency_penalty=request.frequency_penalty,
                    num_logprobs=num_logprobs,
                    constraint=constraint,
                    seed=secrets.randbelow(_SEEDS) if request.seed is None else request.seed,
                    stop=_texts(request.stop),
                    stop_token_ids=None if request.stop_token_ids is None else tuple(request.stop_token_ids),
                )
            )
        except UsageError as error:
            raise ServingError.of_usage(error) from error
        self._check_constraint(options)
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
            is_call,
        )

    def _check_constraint(self, options: Options) -> None:
        """Compile a constraint here first, where only its own request waits, and refuse it by its field's name."""
        if options.constraint is None:
            return
        try:
            options.constraint.matcher(self._model.tokenizer, options.stop_token_ids or ())
        except UsageError as error:
            raise ServingError.of_usage(error, param="response_format") from error

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


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return messages as chat templates take them, calls written out; ServingError for an answer to no call."""
    calls: set[str] = set()
    for number, message in enumerate(messages):
        calls |= {call.id for call in message.tool_calls or ()}
        if message.tool_call_id is not None and message.tool_call_id not in calls:
            place = f"messages.{number}.tool_call_id"
            raise ServingError(400, f"{place}: no call before it has this id", param=place)
    return [{"role": message.role, "content": _content(message)} for message in messages]


def _content(message: ChatMessage) -> str:
    content = message.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return text + "".join(spelled(call) for call in message.tool_calls or ())


def _constraint(wanted: ResponseFormat | None) -> Constraint | None:
    try:
        match wanted:
            case JsonObject():
                return Constraint("json_object")
            case JsonSchema():
                return Constraint("json_schema", json.dumps(wanted.json_schema.schema_))
            case Regex():
                return Constraint("regex", wanted.pattern)
            case Grammar():
                return Constraint("grammar", wanted.grammar)
    except UsageError as error:
        raise ServingError.of_usage(error, param="response_format") from error
    return None


def _rule(text: str | None) -> Rule | None:
    if text is None:
        return None
    try:
        return RULES.parse(text)
    except UsageError as error:
        raise ServingError.of_usage(error, param="rule") from error


def _biases(biases: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    found = {int(token): bias for token, bias in (biases or {}).items()}
    if len(found) < len(biases or {}):
        raise ServingError(400, "logit_bias: two names of one token", param="logit_bias")
    return tuple(found.items())


def _texts(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
