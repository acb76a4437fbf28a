"""Servers in this process: real sockets, real clients."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai

from unmask.decoding.language_model import LanguageModel
from unmask.engine.engine import Engine
from unmask.serving.app import create_app
from unmask.serving.desk import Desk
from unmask.serving.server import Server, bind
from unmask.serving.settings import Settings

NUM_PAGES = 256


@dataclass(frozen=True)
class Served:
    """A server that runs, its address and its engine; the official client tries nothing twice."""

    url: str
    server: Server
    engine: Engine
    desk: Desk
    client: openai.OpenAI

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is open and every page is back."""
        scheduler = self.engine.scheduler
        return (
            not self.desk.service.num_open
            and not scheduler.has_work
            and scheduler.pool.num_available == scheduler.pool.num_pages
        )


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Return when a condition holds; AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


@contextmanager
def serving(model: LanguageModel, settings: Settings, *, max_requests: int = 8) -> Iterator[Served]:
    """Serve a model on a free port until the block ends; then every answer must be done and every page back."""
    engine = Engine(model.denoiser, model.tokenizer, num_pages=NUM_PAGES, max_requests=max_requests)
    app = create_app(model, engine, settings)
    listener = bind("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield Served(url, server, engine, app.state.desk, client)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    engine.check()
