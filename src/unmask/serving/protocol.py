"""The requests of OpenAI's API, and of this server's own routes.

Every field is honoured or refused, see `fields`; a field that is not here is refused as unknown.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unmask.decoding.mode import Mode
from unmask.serving.body import Body, Text, TokenId, TokenName, Word
from unmask.serving.fields import Only, Refused
from unmask.serving.formats import ResponseFormat
from unmask.serving.messages import ChatMessage, ChosenFunction, Function, Tool

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_BIASES = 1024

DIFFUSION_ONLY: tuple[Mode, ...] = ("diffusion",)
SPECULATIVE_ONLY: tuple[Mode, ...] = ("speculative",)
NO_DRAFTS = "only speculative verifies drafts as it is told to; auto chooses by itself"
CAUSAL: tuple[Mode, ...] = ("ar", "speculative", "auto")
NO_NEXT_TOKEN = "a canvas gives no law of a next token"
WITH_CANVAS: tuple[Mode, ...] = ("diffusion", "speculative", "auto")


class StreamOptions(Body):
    """What a stream tells besides text."""

    include_usage: bool | None = Field(None, description="A last chunk with the token counts of the request.")
    include_obfuscation: Annotated[Any, Refused("chunks are not padded", (False,))] = None


class Generating(Body):
    """What completions and chat completions have in common."""

    model: Text | None = Field(None, description="The served model's name; may be left out.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES, description="Answers; number i is drawn with seed + i.")
    seed: int | None = Field(
        None, ge=-(2**62), lt=2**62, description="Of all noise; one is chosen and told when it is left out."
    )
    stop: Word | Annotated[list[Word], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Texts that end the answer and are not part of it."
    )
    stream: bool | None = Field(None, description="Server-sent events: text as soon as it is decided.")
    stream_options: StreamOptions | None = None
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from a token's logit as often as the answer has it already."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from a token's logit once the answer has it."
    )
    logit_bias: dict[TokenName, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_BIASES, description="Added to the logits of tokens, by id."
    )
    response_format: ResponseFormat | None = Field(
        None, description="What the whole answer has to be: json_object, json_schema, regex or grammar."
    )
    user: Text | None = Field(None, max_length=256, description="Written to the server's log.")

    mode: Mode | None = Field(None, description="How to write; the server's own mode if left out.")
    rule: Annotated[Text | None, Only(DIFFUSION_ONLY, "only diffusion chooses what to commit")] = Field(
        None, description="What to commit after a forward, say threshold:0.9."
    )
    block_length: Annotated[
        int | None, Only(WITH_CANVAS, "an autoregressive step has no canvas"), Field(ge=1, le=4096)
    ] = Field(None, description="Most open positions at a time.")
    num_steps: Annotated[
        int | None, Only(DIFFUSION_ONLY, "only diffusion denoises in steps"), Field(ge=1, le=4096)
    ] = Field(None, description="Most denoise forwards per block.")
    tree_size: Annotated[int | None, Only(SPECULATIVE_ONLY, NO_DRAFTS), Field(ge=1, le=4096)] = Field(
        None, description="Most candidates of a draft, several at a place; one at each if left out."
    )
    num_predrafts: Annotated[int | None, Only(SPECULATIVE_ONLY, NO_DRAFTS), Field(ge=0, le=64)] = Field(
        None,
        description="So many of the likeliest ends of a verification have their next draft in the same forward.",
    )
    top_k: int = Field(0, ge=0, lt=2**31, description="Draw from the K likeliest tokens; 0 is off.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw from tokens with this share of the likeliest one's probability."
    )
    stop_token_ids: list[TokenId] | None = Field(
        None, max_length=MAX_STOPS, description="Tokens that end the answer, in the place of the model's own."
    )
    stream_canvas: bool | None = Field(
        None, description="In a stream: after every forward also the canvas, open positions null."
    )

    @model_validator(mode="after")
    def _streams(self) -> "Generating":
        if not self.stream and (self.stream_options is not None or self.stream_canvas):
            name = "stream_options" if self.stream_options is not None else "stream_canvas"
            raise ValueError(f"{name} needs stream=true")
        return self


class CompletionRequest(Generating):
    """POST /v1/completions."""

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]] = Field(
        description="One prompt or several, as text or as token ids."
    )
    max_tokens: int | None = Field(
        16, ge=1, lt=2**31, description="Most tokens of an answer; null: what fits."
    )
    echo: bool | None = Field(None, description="Begin every answer with its prompt.")
    suffix: Annotated[Text | None, Only(DIFFUSION_ONLY, "the others do not see what comes after")] = Field(
        None,
        description="What comes after: the answer fills a hole of exactly max_tokens. The model sees its first 64 "
        "tokens.",
    )
    logprobs: Annotated[int | None, Only(CAUSAL, NO_NEXT_TOKEN), Field(ge=0, le=MAX_LOGPROBS)] = Field(
        None, description="Tell the log-probability of every token, and of so many of the likeliest."
    )
    best_of: Annotated[Any, Refused("answers are not ranked; ask for n and choose", (1,))] = None

    @model_validator(mode="after")
    def _answers_alone(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs: a prompt's tokens have none here; ask /v1/score")
        if self.suffix and self.max_tokens is None:
            raise ValueError("suffix without max_tokens, which is the length of the hole")
        return self


class ChatRequest(Generating):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="As max_completion_tokens.")
    max_completion_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Most tokens of an answer; null: what fits."
    )
    logprobs: Annotated[bool | None, Only(CAUSAL, NO_NEXT_TOKEN)] = Field(
        None, description="Tell the log-probability of every token."
    )
    top_logprobs: Annotated[int | None, Only(CAUSAL, NO_NEXT_TOKEN), Field(ge=0, le=MAX_LOGPROBS)] = Field(
        None, description="And of so many of the likeliest."
    )
    tools: list[Tool] | None = Field(None, min_length=1, description="Functions that the answer may call.")
    tool_choice: Literal["none", "required"] | ChosenFunction | None = Field(
        None,
        description="required or a function: the answer is a call of it. auto, which needs a model trained to choose, "
        "is refused.",
    )
    parallel_tool_calls: bool | None = Field(
        None, description="An answer has one call at most, so both hold."
    )
    safety_identifier: Text | None = Field(None, max_length=256, description="Written to the server's log.")

    audio: Annotated[Any, Refused("this server's models write text only")] = None
    function_call: Annotated[Any, Refused("it is the predecessor of tool_choice")] = None
    functions: Annotated[Any, Refused("it is the predecessor of tools")] = None
    metadata: Annotated[Any, Refused("nothing is stored")] = None
    modalities: Annotated[Any, Refused("this server's models write text only", (["text"],))] = None
    moderation: Annotated[Any, Refused("texts are not moderated")] = None
    prediction: Annotated[Any, Refused("drafts come from the model itself, see mode")] = None
    prompt_cache_key: Annotated[Any, Refused("prefixes are found by their tokens")] = None
    prompt_cache_options: Annotated[Any, Refused("prefixes are found by their tokens")] = None
    prompt_cache_retention: Annotated[Any, Refused("prefixes stay until room is needed")] = None
    reasoning_effort: Annotated[Any, Refused("there is no separate reasoning", ("none",))] = None
    service_tier: Annotated[Any, Refused("there is one tier", ("auto", "default"))] = None
    store: Annotated[Any, Refused("nothing is stored", (False,))] = None
    verbosity: Annotated[Any, Refused("ask for it in the prompt")] = None
    web_search_options: Annotated[Any, Refused("there is no web search")] = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit; give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.tool_choice not in (None, "none") and self.response_format is not None:
            raise ValueError("response_format beside a forced call: the call is the whole answer")
        if self.tools is not None and self.tool_choice is None:
            raise ValueError(
                "tools without a tool_choice mean auto, which is refused; say required or a function"
            )
        if self.tools is None and self.tool_choice not in (None, "none"):
            raise ValueError("tool_choice without tools")
        if isinstance(self.tool_choice, ChosenFunction) and not self.functions_to_call:
            raise ValueError(f"tool_choice: {self.tool_choice.function.name!r} is not among the tools")
        return self

    @property
    def functions_to_call(self) -> list[Function]:
        """The functions of which one must be called; empty without a forced call."""
        known = [tool.function for tool in self.tools or ()]
        match self.tool_choice:
            case "required":
                return known
            case ChosenFunction(function=chosen):
                return [function for function in known if function.name == chosen.name]
        return []


class EmbeddingsRequest(BaseModel):
    """POST /v1/embeddings, which is refused whatever it asks for."""

    model_config = ConfigDict(extra="allow")


class TokenizeRequest(Body):
    """POST /tokenize: a `prompt`, or the `messages` of a conversation in the model's template."""

    model: Text | None = None
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: Text | None = None
    tokens: list[TokenId]


class ScoreRequest(Body):
    """POST /v1/score: how probable are continuations of a context?"""

    model: Text | None = None
    context: Text = Field("", description="What comes before; empty is a text's beginning.")
    continuations: list[Word] = Field(min_length=1, max_length=MAX_CHOICES)
    mode: Literal["ar", "speculative", "diffusion"] | None = Field(
        None,
        description="ar, speculative: exact. diffusion: a lower bound, estimated with its standard error.",
    )
    num_samples: Annotated[
        int | None,
        Only(DIFFUSION_ONLY, "the autoregressive likelihood is exact"),
        Field(ge=2, le=1024),
    ] = Field(None, description="Draws of the bound, 32 unless given.")
    seed: Annotated[
        int | None, Only(DIFFUSION_ONLY, "the autoregressive likelihood is exact"), Field(ge=0, lt=2**62)
    ] = Field(None, description="Of the bound's noise, 0 unless given.")
    block_length: Annotated[
        int | None, Only(DIFFUSION_ONLY, "the autoregressive likelihood has no blocks"), Field(ge=1, le=4096)
    ] = Field(None, description="Of the bound; the model's own unless given.")
