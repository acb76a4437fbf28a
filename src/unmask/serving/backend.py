"""What an application has its answers from: an engine in its own process, or replicas elsewhere."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from unmask.serving.ticket import Order, Ticket

T = TypeVar("T")


class Backend(Protocol):
    """Takes orders from an event loop and gives their events back, until it is stopped."""

    @property
    def is_alive(self) -> bool:
        """Whether answers can be written at all."""

    @property
    def is_ready(self) -> bool:
        """Whether orders are taken."""

    @property
    def num_open(self) -> int:
        """How many answers are waited for."""

    def start(self) -> None:
        """Begin to take orders, whose events go to the running event loop."""

    async def submit(self, orders: Sequence[Order], *, is_watched: bool) -> Ticket:
        """Return the ticket of some answers, once all of them are taken; see `Ticket` for `is_watched`.

        Raises ServingError when there is no room or the server is about to stop, and UsageError for an order that
        cannot be honoured; then none is taken.
        """

    async def run(self, function: Callable[[], T], *, goes_on: bool = False) -> T:
        """Run something else that needs the model, and return its result.

        Raises ServingError when there is no room or the server is about to stop. What goes on with work that has begun
        is not turned away before the time for open answers is over.
        """

    def drain(self, seconds: float) -> None:
        """Take no more orders; what is open after some seconds is told that the server stops."""

    async def stop(self) -> None:
        """Tell what is still open that the server stops, and end."""
