"""An answer while it is written, as server-sent events."""

import logging
from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from unmask.decoding.settled_text import SettledText
from unmask.decoding.transcript import TextStream
from unmask.engine.engine import Finished, Progress
from unmask.serving.answers import Frame
from unmask.serving.disconnect import unless_gone
from unmask.serving.errors import ClientGoneError, ServingError
from unmask.serving.logprobs import Trail
from unmask.serving.record import internal_error, outcome_of, record_of, within
from unmask.serving.ticket import Answers
from unmask.serving.wording import Wording
from unmask.tokenizer import Tokenizer

MEDIA_TYPE = "text/event-stream"

_LOG = logging.getLogger(__name__)
_DONE = b"data: [DONE]\n\n"


class Chunks:
    """The chunks of answers: what is decided for good, and if wanted each forward's canvas."""

    def __init__(
        self, answers: Answers, wording: Wording, tokenizer: Tokenizer, *, has_canvas: bool, has_usage: bool
    ) -> None:
        self._answers, self._wording, self._tokenizer = answers, wording, tokenizer
        self._has_canvas, self._has_usage = has_canvas, has_usage
        self.num_tokens = 0

    async def __aiter__(self) -> AsyncIterator[BaseModel]:
        wording, orders = self._wording, self._answers.orders
        texts = [
            SettledText(self._tokenizer, order.options.stop, order.options.stop_token_ids or ())
            for order in orders
        ]
        trails = [Trail(self._tokenizer) for _ in orders]
        pictures = [Picture(self._tokenizer) for _ in orders]
        lengths = [0 for _ in orders]
        for index in range(len(orders)):
            if (opening := wording.opening(index)) is not None:
                yield opening
        async for index, event in self._answers:
            frame = None
            if isinstance(event, Finished):
                text = texts[index].finish(event.generation.text)
            else:
                text = texts[index].push(event.token_ids)
                trails[index].push(event.token_ids[: len(event.logprobs)], event.logprobs)
                frame = pictures[index].frame(event) if self._has_canvas else None
            lengths[index] += len(text)
            if text or frame is not None:
                piece = wording.piece(index, text, trails[index].shown(lengths[index]), frame)
                if piece is not None:
                    yield piece
            if isinstance(event, Finished):
                self.num_tokens += event.generation.num_tokens
                yield wording.ending(index, event.generation)
        if self._has_usage:
            yield wording.usage(self.num_tokens)


class Picture:
    """One answer's canvas from forward to forward, as pieces of text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decided = TextStream(tokenizer)
        self._num_frames = 0

    def frame(self, progress: Progress) -> Frame:
        """Return the frame after a forward."""
        number, self._num_frames = self._num_frames, self._num_frames + 1
        return Frame(
            forward=number,
            decided=[self._decided.push(token) for token in progress.token_ids],
            canvas=[None if token is None else self._tokenizer.decode([token]) for token in progress.canvas],
            drafts=[self._tokenizer.decode([token]) for token in progress.drafts],
        )


class EventStream(Response):
    """Sends chunks as server-sent events, and closes their answers whatever happens.

    An error after the first chunk is an event of its own, as OpenAI's clients expect; the stream then ends.
    """

    media_type = MEDIA_TYPE

    def __init__(self, chunks: Chunks, answers: Answers, *, timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._answers, self._timeout_s = chunks, answers, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)

        async def send_event(event: bytes, *, more_body: bool = True) -> None:
            await send({"type": "http.response.body", "body": event, "more_body": more_body})

        async def send_all() -> None:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            try:
                async with within(self._timeout_s, record):
                    async for chunk in self._chunks:
                        await send_event(event_of(chunk))
            except ServingError as error:
                record.outcome = outcome_of(error.status_code)
                await send_event(event_of(error.body))
            except Exception:
                record.outcome = "error"
                _LOG.exception("a stream failed", extra={"fields": {"request_id": record.id}})
                await send_event(event_of(internal_error(record).body))
            await send_event(_DONE, more_body=False)

        try:
            await unless_gone(receive, send_all())
        except ClientGoneError:
            record.outcome = "disconnected"
        finally:
            record.about["completion_tokens"] = self._chunks.num_tokens
            self._answers.close()


def event_of(value: BaseModel) -> bytes:
    """Return a server-sent event."""
    return b"data: " + value.model_dump_json().encode() + b"\n\n"
