"""All that a route needs: the model, what translates for it, and the backend that runs it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from unmask.decoding.admission import admit
from unmask.decoding.generation import Generation
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import ENGINE_MODES
from unmask.decoding.options import Options
from unmask.engine.engine import Finished
from unmask.errors import UsageError
from unmask.serving.backend import Backend
from unmask.serving.disconnect import unless_gone
from unmask.serving.errors import ServingError
from unmask.serving.filling import Filling
from unmask.serving.metrics import Metrics
from unmask.serving.protocol import Generating
from unmask.serving.record import record_of, within
from unmask.serving.settings import Settings
from unmask.serving.stream import Chunks, EventStream
from unmask.serving.ticket import Answers
from unmask.serving.translate import Plan, Translator
from unmask.serving.wording import Head, Wording


@dataclass(frozen=True)
class Desk:
    """One served model. `fingerprint`: a name for its weights. `created`: Unix time of the server's start."""

    model: LanguageModel
    settings: Settings
    service: Backend
    metrics: Metrics
    translator: Translator
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        """Raise ServingError for any name but that of the served model."""
        if name not in (None, self.settings.name):
            raise ServingError(
                404,
                f"the model {name!r} is not served here; {self.settings.name!r} is",
                param="model",
                code="model_not_found",
            )

    def head(self, request: Request) -> Head:
        """Return what the answer to a request begins with."""
        record = record_of(request.scope)
        return Head(record.id, self.settings.name, self.fingerprint, self.model.tokenizer)

    def modes(self) -> list[str]:
        """Return the modes that the model and the engine have."""
        modes: list[str] = []
        for mode in ENGINE_MODES:
            options = self.model.resolve(Options(mode=mode))
            try:
                admit(self.model.denoiser, (0,), options)
            except UsageError:
                continue
            if options.sampler is None:
                modes.append(mode)
        return modes

    async def answer(self, request: Request, body: Generating, plan: Plan, wording: Wording) -> Response:
        """Run a plan and return its answer, whole or as a stream."""
        record = record_of(request.scope)
        record.about |= {
            "mode": body.mode or self.settings.mode,
            "answers": len(plan.orders),
            "prompt_tokens": plan.num_prompt_tokens,
        }
        if body.user is not None:
            record.about["user"] = body.user
        answers = await self._begin(plan, is_watched=bool(body.stream))
        timeout_s = self.settings.timeout_s
        if body.stream:
            has_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            chunks = Chunks(
                answers,
                wording,
                self.model.tokenizer,
                has_canvas=bool(body.stream_canvas),
                has_usage=has_usage,
            )
            return EventStream(chunks, answers, timeout_s=timeout_s)
        try:
            async with within(timeout_s, record):
                generations = await unless_gone(request.receive, _generations(answers))
        finally:
            answers.close()
        record.about["completion_tokens"] = sum(generation.num_tokens for generation in generations)
        return JSONResponse(wording.whole(generations).model_dump(mode="json"))

    async def _begin(self, plan: Plan, *, is_watched: bool) -> Answers:
        """Return the answers to a plan, being written: holes are beyond the engine."""
        if any(order.options.suffix_ids for order in plan.orders):
            return Filling(plan.orders, self.model, self.service, self.metrics)
        return await self.service.submit(plan.orders, is_watched=is_watched)


def desk_of(request: Request) -> Desk:
    """Return the desk of the application that a request came to."""
    desk: Desk = request.app.state.desk
    return desk


async def _generations(answers: Answers) -> Sequence[Generation]:
    """Return the finished answers, in the order of the orders."""
    done: dict[int, Generation] = {}
    async for index, event in answers:
        if isinstance(event, Finished):
            done[index] = event.generation
    return [done[index] for index in range(len(answers.orders))]
