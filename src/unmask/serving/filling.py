"""Holes in texts, which the engine does not know: the decoder fills them, a forward at a time, beside the engine."""

from collections.abc import AsyncIterator
from functools import partial

from unmask.decoding.generate import stream
from unmask.decoding.generation import Generation
from unmask.decoding.language_model import LanguageModel
from unmask.engine.engine import Finished, Progress
from unmask.serving.backend import Backend
from unmask.serving.metrics import Metrics
from unmask.serving.ticket import News, Order

_NO_NUMBER = -1


class Filling:
    """Answers that fill holes, one after the other; their text comes when it is whole, for it grows from everywhere.

    Raises UsageError, when it is made, for an order that the decoder refuses.
    """

    def __init__(
        self, orders: tuple[Order, ...], model: LanguageModel, backend: Backend, metrics: Metrics
    ) -> None:
        self.orders = orders
        self._backend, self._metrics = backend, metrics
        self._streams = [
            stream(model.denoiser, model.tokenizer, order.prompt_ids, order.options) for order in orders
        ]

    async def __aiter__(self) -> AsyncIterator[tuple[int, News]]:
        has_begun = False
        for index, events in enumerate(self._streams):
            while True:
                step = partial(next, events)
                event = await self._backend.run(step, goes_on=has_begun)
                has_begun = True
                if isinstance(event, Generation):
                    self._metrics.count_generation(event)
                    yield index, Finished(_NO_NUMBER, event)
                    break
                yield index, Progress(_NO_NUMBER, (), event.canvas, ())

    def close(self) -> None:
        """Give up what is not finished."""
        self._streams.clear()
