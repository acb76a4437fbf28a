"""Answers from several replicas: the same backend, whose engines run elsewhere and may die."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from unmask.decoding.admission import admit
from unmask.engine.engine import Finished
from unmask.model.denoiser import Denoiser
from unmask.serving.errors import ServingError
from unmask.serving.metrics import Metrics
from unmask.serving.reception import Reception
from unmask.serving.ticket import News, Order, Ticket

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_MOST_TRIES = 3


class ReplicaDiedError(Exception):
    """A replica ended before the answer that it was writing."""


class Replicas(Protocol):
    """Processes with an engine each."""

    def stream(self, order: Order, *, is_watched: bool) -> AsyncGenerator[News, None]:
        """Yield what happens to an answer in a replica that has room, its end last; closing aborts it there.

        Unwatched, only the end is told. Raises ReplicaDiedError, and ServingError for what the replica refuses.
        """

    async def stop(self) -> None:
        """End the processes."""


class ReplicatedService:
    """A backend over replicas. An answer of which nothing was told is written again when its replica dies.

    An answer that was told in part is given up and its client told so: what comes next might not fit. `denoiser`: of
    the same model, to refuse orders without asking a replica. `max_answers`: most that may be open. Other work runs
    here, one piece at a time, of which `max_queue` may wait.
    """

    def __init__(
        self, replicas: Replicas, denoiser: Denoiser, metrics: Metrics, *, max_answers: int, max_queue: int
    ) -> None:
        self._replicas, self._denoiser, self._metrics = replicas, denoiser, metrics
        self._reception = Reception(max_answers, self._abandon)
        self._tasks: dict[Ticket, list[asyncio.Task[None]]] = {}
        self._max_jobs, self._num_jobs = max_queue + 1, 0
        self._model_lock = asyncio.Lock()

    @property
    def is_alive(self) -> bool:
        """Always: replicas that die are started again by who started them."""
        return True

    @property
    def is_ready(self) -> bool:
        return not self._reception.is_draining

    @property
    def num_open(self) -> int:
        return self._reception.num_open

    def start(self) -> None:
        """Do nothing: the replicas run."""

    async def submit(self, orders: Sequence[Order], *, is_watched: bool) -> Ticket:
        """Return the ticket of some answers, each of which goes to a replica by itself; see `Backend.submit`."""
        for order in orders:
            admit(self._denoiser, order.prompt_ids, order.options)
        ticket = self._reception.open(orders, is_watched=is_watched)
        tasks = [asyncio.create_task(self._follow(ticket, index)) for index in range(len(orders))]
        self._tasks[ticket] = tasks
        for task in tasks:
            task.add_done_callback(lambda task: self._settle(ticket, task))
        return ticket

    async def run(self, function: Callable[[], T], *, goes_on: bool = False) -> T:
        """Run a function in a thread of this process, after those before it; see `Backend.run`."""
        self._reception.check_time()
        if not goes_on:
            self._reception.check_room(self._num_jobs + 1, self._max_jobs)
        self._num_jobs += 1
        try:
            async with self._model_lock:
                return await asyncio.to_thread(function)
        finally:
            self._num_jobs -= 1

    def drain(self, seconds: float) -> None:
        """Take no more orders; what is open after some seconds is told that the server stops."""
        self._reception.drain(seconds)

    async def stop(self) -> None:
        """Tell what is still open that the server stops, and end the replicas."""
        self._reception.give_up()
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._replicas.stop()

    async def _follow(self, ticket: Ticket, index: int) -> None:
        """Hand a ticket what happens to one of its answers, in as many replicas as it takes."""
        order = ticket.orders[index]
        for _ in range(_MOST_TRIES):
            num_told = 0
            try:
                async with aclosing(self._replicas.stream(order, is_watched=ticket.is_watched)) as stream:
                    async for news in stream:
                        self._count(ticket, order, news, is_first=num_told == 0)
                        ticket.put((index, news))
                        num_told += 1
                return
            except ReplicaDiedError:
                _LOG.warning("a replica died; %d events of an answer were told", num_told)
                if num_told:
                    break
            except ServingError as error:
                ticket.put(error)
                return
        ticket.put(ServingError(500, "the replica that wrote this answer has died", code="replica_died"))

    def _count(self, ticket: Ticket, order: Order, news: News, *, is_first: bool) -> None:
        if isinstance(news, Finished):
            self._metrics.count_generation(news.generation)
        if is_first and ticket.is_watched:
            self._metrics.count_first_token(order.options.mode, time.perf_counter() - ticket.created)

    def _abandon(self, ticket: Ticket) -> None:
        for task in self._tasks.get(ticket, ()):
            task.cancel()

    def _settle(self, ticket: Ticket, task: asyncio.Task[None]) -> None:
        """Forget a task that is done; a failure of this server's own is told to the ticket."""
        self._tasks[ticket].remove(task)
        if not self._tasks[ticket]:
            del self._tasks[ticket]
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("an answer failed", exc_info=error)
            ticket.put(ServingError(500, "the server failed at this request", code="internal_error"))
