"""What is known of one HTTP request, for its log line and its metrics."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from unmask.serving.errors import ServingError


@dataclass
class Record:
    """A request from its arrival to its end; `about` holds what its route adds: mode, tokens, user."""

    id: str
    method: str
    path: str
    route: str = "none"
    status: int = 0
    outcome: str = "ok"
    about: dict[str, object] = field(default_factory=dict)
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.arrived

    def fields(self) -> dict[str, object]:
        """Return all of it for a structured log."""
        return {
            "request_id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 4),
            **self.about,
        }


def record_of(scope: Any) -> Record:
    """Return the record of the request with this ASGI scope."""
    record: Record = scope["unmask.record"]
    return record


def internal_error(record: Record) -> ServingError:
    """Return what a client is told of a failure of the server's own."""
    return ServingError(500, f"the server failed at request {record.id}", code="internal_error")


def outcome_of(status: int) -> str:
    """Return the word by which metrics and logs call an HTTP status."""
    match status:
        case 429 | 503:
            return "busy"
        case 504:
            return "timeout"
        case _ if status >= 500:
            return "error"
        case _ if status >= 400:
            return "refused"
    return "ok"


@asynccontextmanager
async def within(timeout_s: float, record: Record) -> AsyncIterator[None]:
    """Raise ServingError in what takes longer than some seconds after the request's arrival."""
    try:
        async with asyncio.timeout(timeout_s - record.seconds):
            yield
    except TimeoutError as error:
        message = f"the request took longer than this server's {timeout_s:g} s"
        raise ServingError(504, message, code="timeout") from error
