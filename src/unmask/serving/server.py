"""The process that serves: a socket, uvicorn, and a stop that loses nothing."""

import logging
import socket
import sys

import uvicorn
from fastapi import FastAPI

from unmask.errors import FailureError
from unmask.serving.desk import Desk
from unmask.serving.log_lines import JsonLines, PlainLines

_LOG = logging.getLogger(__name__)
_LAST_WORDS_S = 5.0
_BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """Return a socket with this address; port 0 is any free one. Raises FailureError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise FailureError(f"cannot listen on {host}:{port}: {error}", "choose another --port") from error
    return listener


class Server(uvicorn.Server):
    """uvicorn, but when it is told to stop, what is open gets its time and then a clean error."""

    def __init__(self, app: FastAPI) -> None:
        desk: Desk = app.state.desk
        self._desk = desk
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                backlog=_BACKLOG,
                timeout_graceful_shutdown=int(desk.settings.drain_s + _LAST_WORDS_S),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            place = f"[{host}]" if ":" in host else host
            _LOG.info("serving %s on http://%s:%d", self._desk.settings.name, place, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let open requests finish within the time for it, and end."""
        service, seconds = self._desk.service, self._desk.settings.drain_s
        _LOG.info("stopping; %d answers are open and have %g s", service.num_open, seconds)
        service.drain(seconds)
        await super().shutdown(sockets)


def log_to_stderr(*, as_json: bool) -> None:
    """Write what the server and uvicorn log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    for name, level in (("unmask.serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until a signal says to stop."""
    with listener:
        Server(app).run(sockets=[listener])
