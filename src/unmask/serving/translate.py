"""From the requests of the API to orders for the engine."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unmask.chat_template import Message
from unmask.decoding.constraint import Constraint
from unmask.decoding.language_model import SUFFIX_LENGTH, LanguageModel
from unmask.decoding.mode import Mode
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


@dataclass(frozen=True)
class _Wanted:
    """What completions and chat completions say each in its own way; an opening for each of the prompts."""

    prompts: Sequence[Sequence[int]]
    openings: Sequence[str]
    limit: int | None
    num_logprobs: int | None
    constraint: Constraint | None
    suffix_ids: tuple[int, ...] = ()
    is_call: bool = False


class Translator:
    """Makes plans of requests for one model; raises ServingError for what the model or the mode cannot honour.

    `capacity`: most tokens of a prompt and its answer together.
    """

    def __init__(self, model: LanguageModel, settings: Settings, *, capacity: int) -> None:
        self._model, self._settings, self.capacity = model, settings, capacity

    def completion(self, request: CompletionRequest) -> Plan:
        """Return the plan of a completion: bare prompts, without a chat template."""
        limit = request.max_tokens
        if limit is not None and "max_tokens" not in request.model_fields_set:
            limit = min(limit, self._settings.max_tokens or limit)
        prompts = _prompts(request)
        wanted = _Wanted(
            prompts=[self._prompt_ids(prompt) for prompt in prompts],
            openings=[self._opening(prompt) if request.echo else "" for prompt in prompts],
            limit=limit,
            num_logprobs=request.logprobs,
            constraint=_constraint(request.response_format),
            suffix_ids=tuple(self._model.tokenizer.encode(request.suffix or "")[:SUFFIX_LENGTH]),
        )
        return self._plan(request, wanted)

    def chat(self, request: ChatRequest) -> Plan:
        """Return the plan of an answer to a conversation."""
        functions = request.functions_to_call
        opening = [{"role": "system", "content": instructions(functions)}] if functions else []
        wanted = _Wanted(
            prompts=[self._conversation_ids([*opening, *conversation(request.messages)])],
            openings=[""],
            limit=request.max_completion_tokens or request.max_tokens,
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            constraint=call_constraint(functions) if functions else _constraint(request.response_format),
            is_call=bool(functions),
        )
        return self._plan(request, wanted)

    def conversation_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a conversation in the model's template."""
        return self._conversation_ids(conversation(messages))

    def _conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        try:
            return self._model.encode(messages)
        except UsageError as error:
            raise ServingError.of_usage(error, param="messages") from error

    def _plan(self, request: Generating, wanted: _Wanted) -> Plan:
        mode = request.mode or self._settings.mode
        refuse_by_mode(request, mode)
        num_answers = len(wanted.prompts) * request.n
        if num_answers > self._settings.max_choices:
            raise ServingError(
                400,
                f"{len(wanted.prompts)} prompt(s) with n={request.n} make {num_answers} answers; "
                f"this server writes at most {self._settings.max_choices} for a request",
                param="n",
            )
        seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        orders: list[Order] = []
        for prompt in wanted.prompts:
            room = self._room(len(prompt) + len(wanted.suffix_ids), wanted.limit)
            try:
                options = self._model.resolve(_options(request, wanted, mode, max_tokens=room))
            except UsageError as error:
                raise ServingError.of_usage(error) from error
            orders += [
                Order(tuple(prompt), replace(options, seed=seed + number)) for number in range(request.n)
            ]
        self._check_constraint(orders[0].options)
        return Plan(
            tuple(orders),
            tuple(opening for opening in wanted.openings for _ in range(request.n)),
            sum(map(len, wanted.prompts)),
            wanted.is_call,
        )

    def _check_constraint(self, options: Options) -> None:
        """Compile a constraint here first, where only its own request waits, and refuse it by its field's name."""
        if options.constraint is None:
            return
        try:
            options.constraint.matcher(self._model.tokenizer, options.stop_token_ids or ())
        except UsageError as error:
            raise ServingError.of_usage(error, param="response_format") from error

    def _room(self, num_given: int, limit: int | None) -> int:
        """Return how many tokens an answer beside given ones may have: the limit, or else what fits."""
        fitting = self.capacity - num_given
        most = self._settings.max_tokens
        if limit is not None and most is not None and limit > most:
            raise ServingError(
                400, f"max_tokens={limit}: this server writes at most {most}", param="max_tokens"
            )
        if fitting < (limit or 1):
            raise ServingError(
                400,
                f"the prompt has {num_given} tokens and {limit or 1} were asked for; "
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


def _options(request: Generating, wanted: _Wanted, mode: Mode, *, max_tokens: int) -> Options:
    """Return the decoding options of a request, but for its answers' seeds."""
    return Options(
        mode=mode,
        max_tokens=max_tokens,
        rule=_rule(request.rule),
        block_length=request.block_length,
        num_steps=request.num_steps,
        tree_size=request.tree_size,
        num_predrafts=request.num_predrafts,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        logit_bias=_biases(request.logit_bias),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        num_logprobs=wanted.num_logprobs,
        constraint=wanted.constraint,
        suffix_ids=wanted.suffix_ids,
        stop=_texts(request.stop),
        stop_token_ids=None if request.stop_token_ids is None else tuple(request.stop_token_ids),
    )


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
