"""Who waits for answers, and whether there is room for more."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from unmask.serving.errors import ServingError
from unmask.serving.ticket import Order, Ticket

_NUM_DURATIONS = 64
_MOST_RETRY_S = 60


class Reception:
    """The tickets that are open, of at most `capacity` answers together.

    `abandon` is called with a ticket that is closed before its answers are finished.
    """

    def __init__(self, capacity: int, abandon: Callable[[Ticket], None]) -> None:
        self._capacity, self._abandon = capacity, abandon
        self._tickets: set[Ticket] = set()
        self._durations: deque[float] = deque(maxlen=_NUM_DURATIONS)
        self.is_draining = False
        self._has_given_up = False

    @property
    def num_open(self) -> int:
        """How many answers are waited for."""
        return sum(len(ticket.orders) for ticket in self._tickets)

    def open(self, orders: Sequence[Order], *, is_watched: bool) -> Ticket:
        """Return a new ticket; raises ServingError when there is no room or the server is about to stop."""
        self.check_room(self.num_open + len(orders), self._capacity)
        ticket = Ticket(tuple(orders), self._close, is_watched=is_watched)
        self._tickets.add(ticket)
        return ticket

    def check_room(self, wanted: int, most: int) -> None:
        """Raise ServingError when more is wanted than there is room for, or the server is about to stop."""
        if self.is_draining:
            raise _stopping()
        if wanted > most:
            raise ServingError(
                429,
                f"the server is busy: with this request {wanted} answers would be open, and at most {most} may be",
                code="queue_full",
                headers={"Retry-After": str(self._retry_after())},
            )

    def check_time(self) -> None:
        """Raise ServingError when what is open has had its time."""
        if self._has_given_up:
            raise _stopping()

    def drain(self, seconds: float) -> None:
        """Open no more; what is open after some seconds is told that the server stops."""
        if not self.is_draining:
            self.is_draining = True
            asyncio.get_running_loop().call_later(seconds, self.give_up)

    def give_up(self) -> None:
        """Tell what is open that the server stops, and open no more."""
        self.is_draining = self._has_given_up = True
        for ticket in self._tickets:
            ticket.put(_stopping())

    def _close(self, ticket: Ticket) -> None:
        if ticket not in self._tickets:
            return
        self._tickets.remove(ticket)
        if ticket.is_open:
            self._abandon(ticket)
        else:
            self._durations.append(time.perf_counter() - ticket.created)

    def _retry_after(self) -> int:
        """Return how many seconds the last requests took, for then there should be room."""
        mean = sum(self._durations) / len(self._durations) if self._durations else 1.0
        return max(1, min(_MOST_RETRY_S, math.ceil(mean)))


def _stopping() -> ServingError:
    return ServingError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
