"""One engine in a thread of its own, behind an asynchronous face.

All that touches the model runs in that thread: what the event loop wants done there it posts as a function. Between two
forwards the thread takes what was posted; without work it sleeps until something is.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unmask.engine.engine import Engine, Event, Failed, Finished
from unmask.errors import ProcessLostError, UsageError
from unmask.serving.errors import ServingError
from unmask.serving.metrics import Metrics
from unmask.serving.reception import Reception
from unmask.serving.ticket import Arrival, Order, Ticket

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class _Place:
    """Where the events of one answer go: to answer `index` of a ticket."""

    ticket: Ticket
    index: int
    has_begun: bool = False


class Service:
    """Takes orders from an event loop and gives their events back, until it is stopped.

    `max_queue`: answers that may be open beside those that the engine runs at once, and other work that may wait.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, max_queue: int) -> None:
        self._engine, self._metrics = engine, metrics
        self._max_jobs = max_queue + 1
        self._num_jobs = 0
        self._reception = Reception(engine.scheduler.max_requests + max_queue, self._abandon)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_broken = False
        self._places: dict[int, _Place] = {}  # by number of the request; the thread's own

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs and its engine is sound."""
        return self._thread.is_alive() and not self._is_broken

    @property
    def is_ready(self) -> bool:
        """Whether orders are taken."""
        return self.is_alive and not self._reception.is_draining

    @property
    def num_open(self) -> int:
        """How many answers are waited for."""
        return self._reception.num_open

    def start(self) -> None:
        """Start the engine's thread; events go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._metrics.note(self._engine)
        self._thread.start()

    async def submit(self, orders: Sequence[Order], *, is_watched: bool) -> Ticket:
        """Return the ticket of some answers, once the engine has taken all of them; see `Ticket` for `is_watched`.

        Raises ServingError when there is no room or the server is about to stop, and UsageError for an order that the
        engine refuses; then it has taken none.
        """
        self._check_alive()
        ticket = self._reception.open(orders, is_watched=is_watched)
        try:
            await self._in_thread(lambda: self._add(ticket))
        except BaseException:
            ticket.close()
            raise
        return ticket

    async def run(self, function: Callable[[], T], *, goes_on: bool = False) -> T:
        """Run something else that needs the model, between two forwards, and return its result; see `Backend.run`."""
        self._check_alive()
        self._reception.check_time()
        if not goes_on:
            self._reception.check_room(self._num_jobs + 1, self._max_jobs)
        self._num_jobs += 1
        try:
            return await self._in_thread(function)
        finally:
            self._num_jobs -= 1

    def drain(self, seconds: float) -> None:
        """Take no more orders; what is open after some seconds is told that the server stops."""
        self._reception.drain(seconds)

    async def stop(self) -> None:
        """Tell what is still open that the server stops, and end the thread."""
        self._reception.give_up()
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    def _check_alive(self) -> None:
        if not self.is_alive and not self._reception.is_draining:
            raise ServingError(503, "the engine has failed; the server must be started again", code="broken")

    def _abandon(self, ticket: Ticket) -> None:
        self._inbox.put(lambda: self._abort(ticket))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Return what a function returns in the engine's thread, where it may be cancelled before it has begun."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            if result.done():  # whoever waited was cancelled
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(value)  # type: ignore[arg-type]

        def job() -> None:
            if result.cancelled():
                return
            try:
                value, error = function(), None
            except Exception as raised:
                value, error = None, raised
            loop.call_soon_threadsafe(settle, value, error)

        self._inbox.put(job)
        return await result

    # What follows runs in the engine's thread.

    def _work(self) -> None:
        while True:
            try:
                while self._is_broken or not self._engine.has_work or not self._inbox.empty():
                    job = self._inbox.get()
                    if job is None:
                        return
                    job()
                self._tell(self._engine.step())
            except Exception as error:
                _LOG.exception("a forward failed")
                self._recover(is_final=isinstance(error, ProcessLostError))

    def _add(self, ticket: Ticket) -> None:
        numbers: list[int] = []
        try:
            for order in ticket.orders:
                numbers.append(self._engine.add(order.prompt_ids, order.options))
        except UsageError:
            for number in numbers:
                self._engine.abort(number)
            raise
        self._places |= {number: _Place(ticket, index) for index, number in enumerate(numbers)}

    def _abort(self, ticket: Ticket) -> None:
        for number in [number for number, place in self._places.items() if place.ticket is ticket]:
            del self._places[number]
            self._engine.abort(number)
        self._metrics.note(self._engine)

    def _tell(self, events: Sequence[Event]) -> None:
        self._metrics.count_step(self._engine)
        arrivals: list[tuple[Ticket, Arrival]] = []
        for event in events:
            place = self._places[event.request_id]
            if isinstance(event, Failed):
                del self._places[event.request_id]
                arrivals.append((place.ticket, ServingError(400, str(event.error), code="constraint_failed")))
                continue
            if place.ticket.is_watched or isinstance(event, Finished):
                arrivals.append((place.ticket, (place.index, event)))
            if isinstance(event, Finished):
                del self._places[event.request_id]
                self._metrics.count_generation(event.generation)
            elif event.token_ids and not place.has_begun:
                place.has_begun = True
                mode = place.ticket.orders[place.index].options.mode
                self._metrics.count_first_token(mode, time.perf_counter() - place.ticket.created)
        self._put(arrivals)

    def _recover(self, *, is_final: bool) -> None:
        """Give up every answer that may have had part in a forward that failed, and see whether the rest is sound.

        `is_final`: no other forward can run.
        """
        self._metrics.count_failure()
        waiting = {request.number for request in self._engine.scheduler.waiting}
        lost = {place.ticket for number, place in self._places.items() if number not in waiting}
        try:
            for ticket in lost:
                self._abort(ticket)
            self._engine.check()
        except Exception:
            _LOG.exception("the engine cannot go on")
            is_final = True
        if is_final:
            self._is_broken = True
            lost |= {place.ticket for place in self._places.values()}
            self._places.clear()
        error = ServingError(500, "the server failed at this request", code="internal_error")
        self._put([(ticket, error) for ticket in lost])

    def _put(self, arrivals: Sequence[tuple[Ticket, Arrival]]) -> None:
        """Let the event loop hand arrivals to their tickets."""
        assert self._loop is not None  # start
        if arrivals:
            self._loop.call_soon_threadsafe(_put_all, arrivals)


def _put_all(arrivals: Sequence[tuple[Ticket, Arrival]]) -> None:
    for ticket, arrival in arrivals:
        ticket.put(arrival)
