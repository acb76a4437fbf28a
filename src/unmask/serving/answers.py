"""The answers of OpenAI's API, and of this server's own routes."""

from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Token counts of a request; a prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Account(BaseModel):
    """What an answer took, which OpenAI's API has no words for; see `decoding.generation.Generation`.

    `seconds`: "waiting", "prefill" and "decode".
    """

    mode: str
    seed: int
    num_forwards: int
    num_decode_forwards: int
    tokens_per_forward: float | None
    accepted_lengths: list[int]
    seconds: dict[str, float]


class Frame(BaseModel):
    """A canvas after one forward: pieces of text, null where a position is open.

    `forward`: 0 is the prefill. `decided`: what came to the text for good. `canvas`: what follows. `drafts`: proposals
    for what follows, not verified yet.
    """

    forward: int
    decided: list[str]
    canvas: list[str | None]
    drafts: list[str]


class CompletionLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens under the model's own law; `text_offset`: in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer, or a piece of one."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None = None
    unmask: Account | Frame | None = None


class Completion(BaseModel):
    """What /v1/completions returns, or one of its chunks."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token's log-probability; `bytes` are null where the token is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A written token's log-probability, and those of the likeliest tokens in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens under the model's own law."""

    content: list[TokenLogprob]
    refusal: None = None


class WrittenFunction(BaseModel):
    """A called function and its arguments, as JSON text."""

    name: str
    arguments: str


class WrittenCall(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function"] = "function"
    function: WrittenFunction


class AssistantMessage(BaseModel):
    """An answer: text, or a call."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[WrittenCall] | None = None


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    unmask: Account


class ChatCompletion(BaseModel):
    """What /v1/chat/completions returns."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    """What a chunk adds to a call: the function's name, once, and some of its arguments."""

    name: str | None
    arguments: str


class CallDelta(BaseModel):
    """What a chunk adds to the calls of a message; an answer has one at most, number 0."""

    index: Literal[0] = 0
    id: str | None
    type: Literal["function"] = "function"
    function: FunctionDelta


class Delta(BaseModel):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(BaseModel):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None
    unmask: Account | Frame | None = None


class ChatChunk(BaseModel):
    """A piece of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelInfo(BaseModel):
    """A model that is served, and what it can do."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["unmask"] = "unmask"
    modes: list[str]
    max_model_len: int


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Tokens(BaseModel):
    """What /tokenize returns; `max_model_len`: the model's context."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(BaseModel):
    """What /detokenize returns."""

    prompt: str


class Score(BaseModel):
    """The log-likelihood of a continuation, in nats; with a standard error it is the estimate of a lower bound."""

    index: int
    log_likelihood: float
    standard_error: float | None
    is_greedy: bool | None
    num_tokens: int


class Scores(BaseModel):
    """What /v1/score returns."""

    object: Literal["list"] = "list"
    model: str
    kind: Literal["exact", "bound"]
    data: list[Score]


class Health(BaseModel):
    """Whether the server is alive, or ready."""

    status: str
