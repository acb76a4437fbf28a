"""What a request has ordered of the engine, and what comes of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from unmask.decoding.options import Options
from unmask.engine.engine import Finished, Progress
from unmask.serving.errors import ServingError


@dataclass(frozen=True)
class Order:
    """One answer to write: what the engine is to be given."""

    prompt_ids: tuple[int, ...]
    options: Options


News = Progress | Finished
Arrival = tuple[int, News] | ServingError


class Answers(Protocol):
    """Answers that are being written: their events, with the number of the answer, until all are finished.

    Whoever has them must close them, which gives up what is not finished.
    """

    orders: tuple[Order, ...]

    def __aiter__(self) -> AsyncIterator[tuple[int, News]]: ...
    def close(self) -> None: ...


class Ticket:
    """The answers that a request waits for, written by a backend.

    Iterating raises ServingError when the server gives up on them. `is_watched`: it gets what happens before the end,
    too.
    """

    def __init__(
        self, orders: tuple[Order, ...], on_close: Callable[["Ticket"], None], *, is_watched: bool
    ) -> None:
        self.orders, self.created, self.is_watched = orders, time.perf_counter(), is_watched
        self._on_close = on_close
        self._arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        self._num_open = len(orders)

    @property
    def is_open(self) -> bool:
        """Whether an answer is not finished, as far as its reader has come."""
        return self._num_open > 0

    async def __aiter__(self) -> AsyncIterator[tuple[int, News]]:
        while self.is_open:
            arrival = await self._arrivals.get()
            if isinstance(arrival, ServingError):
                raise arrival
            self._num_open -= isinstance(arrival[1], Finished)
            yield arrival

    def put(self, arrival: Arrival) -> None:
        """Hand over an event, or the reason why there will be none."""
        self._arrivals.put_nowait(arrival)

    def close(self) -> None:
        """Give up what is not finished; its pages return before the next forward."""
        self._on_close(self)
