"""What surrounds every request: its id, its key, the size of its body, its errors, its log line."""

import logging
import re
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.serving.errors import ServingError
from unmask.serving.keys import Keys
from unmask.serving.metrics import Metrics
from unmask.serving.record import Record, internal_error, outcome_of

REQUEST_ID = "x-request-id"
_LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")


class Envelope:
    """The outermost layer of the application, in plain ASGI so that streams pass through untouched.

    `open_paths`: those that need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        metrics: Metrics,
        max_body_bytes: int,
        open_paths: Collection[str],
    ) -> None:
        self._app, self._keys, self._metrics, self._max_body = app, keys, metrics, max_body_bytes
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        record = scope["unmask.record"] = Record(request_id, scope["method"], scope["path"])

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = record.id
            await send(message)

        try:
            await self._guarded(scope, headers, receive, send_marked)
        except ServingError as error:
            await error_response(error)(scope, receive, send_marked)
        except Exception:
            record.outcome = "error"
            _LOG.exception("a request failed", extra={"fields": {"request_id": record.id}})
            if not record.status:
                await error_response(internal_error(record))(scope, receive, send_marked)
        finally:
            if record.outcome == "ok":
                record.outcome = outcome_of(record.status)
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.count_request(route, record.outcome, record.seconds)
            _LOG.info("request", extra={"fields": record.fields()})

    async def _guarded(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if scope["path"] not in self._open_paths:
            self._keys.check(headers.get("authorization"))
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise ServingError(400, "the header Content-Length is not a number")
        if int(length) > self._max_body:
            raise self._too_large()
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body:
                raise self._too_large()
            return message

        await self._app(scope, receive_limited, send)

    def _too_large(self) -> ServingError:
        return ServingError(413, f"the body is larger than {self._max_body} bytes", code="body_too_large")


def error_response(error: ServingError) -> JSONResponse:
    """Return an error as the client gets it."""
    return JSONResponse(error.body.model_dump(), error.status_code, error.headers)
