"""The routes of the API."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from unmask.serving.answers import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Health,
    ModelInfo,
    ModelList,
    Scores,
    Text,
    Tokens,
)
from unmask.serving.desk import Desk, desk_of
from unmask.serving.disconnect import unless_gone
from unmask.serving.errors import ErrorBody, ServingError
from unmask.serving.metrics import CONTENT_TYPE
from unmask.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingsRequest,
    ScoreRequest,
    TokenizeRequest,
)
from unmask.serving.record import record_of, within
from unmask.serving.score import score
from unmask.serving.stream import MEDIA_TYPE
from unmask.serving.wording import ChatWording, CompletionWording

AtDesk = Annotated[Desk, Depends(desk_of)]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": "What is wrong."} for status in ("4XX", "5XX")
}

API = APIRouter(responses=ERRORS)
PROBES = APIRouter()


def _streamed(chunk: type[Completion] | type[ChatChunk]) -> dict[int | str, dict[str, Any]]:
    data = {"type": "string", "description": f"A {chunk.__name__} as JSON, an error, or [DONE] at the end."}
    # Before OpenAPI 3.2 a schema of server-sent events describes each of them.
    schema = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {200: {"content": {MEDIA_TYPE: {"schema": schema}}}}


@API.get("/v1/models")
async def models(desk: AtDesk) -> ModelList:
    """List the model that is served."""
    return ModelList(data=[_model(desk)])


@API.get("/v1/models/{model}")
async def model(model: str, desk: AtDesk) -> ModelInfo:
    """Describe the model that is served."""
    desk.check_model(model)
    return _model(desk)


@API.post("/v1/completions", response_model=Completion, responses=_streamed(Completion))
async def completions(body: CompletionRequest, request: Request, desk: AtDesk) -> Response:
    """Write on from bare prompts."""
    desk.check_model(body.model)
    plan = await asyncio.to_thread(desk.translator.completion, body)
    wording = CompletionWording(desk.head(request), plan)
    return await desk.answer(request, body, plan, wording)


@API.post("/v1/chat/completions", response_model=ChatCompletion, responses=_streamed(ChatChunk))
async def chat_completions(body: ChatRequest, request: Request, desk: AtDesk) -> Response:
    """Answer a conversation."""
    desk.check_model(body.model)
    if body.safety_identifier is not None:
        record_of(request.scope).about["safety_identifier"] = body.safety_identifier
    plan = await asyncio.to_thread(desk.translator.chat, body)
    wording = ChatWording(desk.head(request), plan)
    return await desk.answer(request, body, plan, wording)


@API.post("/v1/embeddings")
async def embeddings(body: EmbeddingsRequest) -> None:
    """Refuse: there are no embeddings here."""
    raise ServingError(
        400,
        "embeddings are not supported: this server's models write text and were not trained to embed it",
        code="unsupported_endpoint",
    )


@API.post("/tokenize")
async def tokenize(body: TokenizeRequest, desk: AtDesk) -> Tokens:
    """Return the token ids of a text or a conversation, as the routes above would prompt the model."""
    desk.check_model(body.model)
    if body.messages is not None:
        ids = await asyncio.to_thread(desk.translator.conversation_ids, body.messages)
    else:
        ids = await asyncio.to_thread(desk.model.tokenizer.encode_prompt, body.prompt or "")
    return Tokens(tokens=ids, count=len(ids), max_model_len=desk.translator.capacity)


@API.post("/detokenize")
async def detokenize(body: DetokenizeRequest, desk: AtDesk) -> Text:
    """Return the text of token ids, special tokens included."""
    desk.check_model(body.model)
    return Text(prompt=desk.model.tokenizer.decode(body.tokens, skip_special=False))


@API.post("/v1/score")
async def scores(body: ScoreRequest, request: Request, desk: AtDesk) -> Scores:
    """Return how probable continuations of a context are, in nats."""
    desk.check_model(body.model)
    settings = desk.settings
    work = score(body, desk.model, desk.service, name=settings.name, default_mode=settings.mode)
    async with within(settings.timeout_s, record_of(request.scope)):
        return await unless_gone(request.receive, work)


@API.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(desk: AtDesk) -> Response:
    """Tell Prometheus."""
    return Response(desk.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


@PROBES.get("/health", response_model=Health, responses={503: {"model": Health}})
async def health(desk: AtDesk) -> Response:
    """Say whether the server is alive; if not, start it again."""
    return _probe(desk.service.is_alive, "alive", "broken")


@PROBES.get("/ready", response_model=Health, responses={503: {"model": Health}})
async def ready(desk: AtDesk) -> Response:
    """Say whether the server takes requests; not while it stops."""
    return _probe(desk.service.is_ready, "ready", "not ready")


def _probe(is_well: bool, well: str, ill: str) -> Response:
    return JSONResponse(Health(status=well if is_well else ill).model_dump(), 200 if is_well else 503)


def _model(desk: Desk) -> ModelInfo:
    return ModelInfo(
        id=desk.settings.name,
        created=desk.created,
        modes=desk.modes(),
        max_model_len=desk.translator.capacity,
    )
