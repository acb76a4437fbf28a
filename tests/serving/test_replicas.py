"""Replicas: an answer outlives the replica that was writing it, as long as nothing of it was told."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.engine.engine import Engine, Finished
from unmask.errors import UsageError
from unmask.serving.app import app_over
from unmask.serving.errors import ServingError
from unmask.serving.metrics import Metrics
from unmask.serving.replicas import ReplicaDiedError, ReplicatedService
from unmask.serving.service import Service
from unmask.serving.settings import Settings
from unmask.serving.ticket import News, Order, Ticket


@dataclass
class Replicas:
    """One real service in the place of all replicas; call number i dies after `deaths[i]` events."""

    engine: Engine
    deaths: dict[int, int] = field(default_factory=dict)
    num_calls: int = 0
    num_stops: int = 0
    service: Service | None = None

    async def stream(self, order: Order, *, is_watched: bool) -> AsyncGenerator[News, None]:
        if self.service is None:
            self.service = Service(self.engine, Metrics(), max_queue=100)
            self.service.start()
        death, self.num_calls = self.deaths.get(self.num_calls), self.num_calls + 1
        ticket = await self.service.submit([order], is_watched=is_watched)
        num_events = 0
        try:
            if death == 0:
                raise ReplicaDiedError
            async for _, news in ticket:
                yield news
                num_events += 1
                if num_events == death:
                    raise ReplicaDiedError
        finally:
            ticket.close()

    async def stop(self) -> None:
        self.num_stops += 1
        if self.service is not None:
            await self.service.stop()


@pytest.fixture
def replicas(model: LanguageModel) -> Replicas:
    return Replicas(Engine(model.denoiser, model.tokenizer, num_pages=64, max_requests=4))


@pytest.fixture
def order(model: LanguageModel) -> Order:
    options = Options(mode="speculative", max_tokens=8, seed=1, stop_token_ids=())
    return Order(tuple(model.encode("abc", raw=True)), model.resolve(options))


def backend(replicas: Replicas, model: LanguageModel, *, max_answers: int = 8) -> ReplicatedService:
    return ReplicatedService(replicas, model.denoiser, Metrics(), max_answers=max_answers, max_queue=1)


def run(service: ReplicatedService, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        service.start()
        try:
            await test()
        finally:
            await service.stop()

    asyncio.run(whole())


async def read(ticket: Ticket) -> list[tuple[int, News]]:
    try:
        return [arrival async for arrival in ticket]
    finally:
        ticket.close()


def texts(arrivals: list[tuple[int, News]]) -> dict[int, str]:
    return {index: news.generation.text for index, news in arrivals if isinstance(news, Finished)}


def test_answers_of_one_request_are_those_of_an_engine(
    replicas: Replicas, model: LanguageModel, order: Order
) -> None:
    service = backend(replicas, model)
    orders = [replace(order, options=replace(order.options, seed=seed, temperature=1.0)) for seed in range(3)]

    async def test() -> None:
        arrivals = await read(await service.submit(orders, is_watched=True))
        truth = [list(model.stream("abc", each.options, raw=True))[-1] for each in orders]
        assert texts(arrivals) == {index: each.text for index, each in enumerate(truth)}
        for index, each in enumerate(truth):
            told = [
                news.token_ids
                for place, news in arrivals
                if place == index and not isinstance(news, Finished)
            ]
            assert sum(told, ()) == each.token_ids
        assert service.num_open == 0

    run(service, test)
    assert replicas.num_stops == 1


@pytest.mark.parametrize(("is_watched", "deaths"), [(True, {0: 0}), (True, {0: 0, 1: 0}), (False, {0: 0})])
def test_an_answer_of_which_nothing_was_told_is_written_again(
    replicas: Replicas, model: LanguageModel, order: Order, is_watched: bool, deaths: dict[int, int]
) -> None:
    service, replicas.deaths = backend(replicas, model), deaths

    async def test() -> None:
        arrivals = await read(await service.submit([order], is_watched=is_watched))
        assert texts(arrivals) == {0: list(model.stream("abc", order.options, raw=True))[-1].text}
        assert is_watched or len(arrivals) == 1

    run(service, test)
    assert replicas.num_calls == len(deaths) + 1


def test_an_answer_told_in_part_is_given_up_and_said_to_be(
    replicas: Replicas, model: LanguageModel, order: Order
) -> None:
    service, replicas.deaths = backend(replicas, model), {0: 2}

    async def test() -> None:
        ticket = await service.submit([order], is_watched=True)
        with pytest.raises(ServingError, match="has died") as caught:
            await read(ticket)
        assert (caught.value.status_code, caught.value.code) == (500, "replica_died")
        assert texts(await read(await service.submit([order], is_watched=True)))

    run(service, test)
    assert replicas.num_calls == 2


def test_replicas_that_keep_dying_are_not_tried_for_ever(
    replicas: Replicas, model: LanguageModel, order: Order
) -> None:
    service, replicas.deaths = backend(replicas, model), dict.fromkeys(range(9), 0)

    async def test() -> None:
        ticket = await service.submit([order], is_watched=False)
        with pytest.raises(ServingError, match="has died"):
            await read(ticket)

    run(service, test)
    assert replicas.num_calls == 3


def test_closing_a_ticket_aborts_its_answers_in_the_replica(
    replicas: Replicas, model: LanguageModel, order: Order
) -> None:
    service = backend(replicas, model)
    long = replace(order, options=replace(order.options, max_tokens=500))

    async def test() -> None:
        ticket = await service.submit([long], is_watched=True)
        await anext(aiter(ticket))
        ticket.close()
        assert service.num_open == 0
        assert replicas.service is not None
        while replicas.service.num_open or replicas.engine.has_work:
            await asyncio.sleep(0.01)

    run(service, test)
    replicas.engine.check()
    assert replicas.engine.scheduler.pool.num_available == 64


def test_orders_are_refused_before_a_replica_is_asked(
    replicas: Replicas, model: LanguageModel, order: Order
) -> None:
    service = backend(replicas, model, max_answers=2)

    async def test() -> None:
        empty = replace(order, prompt_ids=())
        with pytest.raises(UsageError, match="prompt"):
            await service.submit([order, empty], is_watched=True)
        with pytest.raises(ServingError, match="busy") as caught:
            await service.submit([order] * 3, is_watched=True)
        assert caught.value.status_code == 429
        service.drain(60)
        with pytest.raises(ServingError, match="stopping"):
            await service.submit([order], is_watched=True)
        assert not service.is_ready

    run(service, test)
    assert replicas.num_calls == 0


def test_draining_ends_what_is_open_with_a_clean_error(
    replicas: Replicas, model: LanguageModel, order: Order
) -> None:
    service = backend(replicas, model)
    long = replace(order, options=replace(order.options, max_tokens=500))

    async def test() -> None:
        ticket = await service.submit([long], is_watched=True)
        service.drain(0.05)
        with pytest.raises(ServingError, match="stopping"):
            await read(ticket)

    run(service, test)


def test_the_application_does_not_know_what_it_runs_over(replicas: Replicas, model: LanguageModel) -> None:
    replicas.deaths = {0: 0, 3: 2}
    metrics = Metrics()
    service = ReplicatedService(replicas, model.denoiser, metrics, max_answers=8, max_queue=1)
    body = {"prompt": "abc", "max_tokens": 8, "seed": 1, "temperature": 0, "mode": "speculative"}
    with TestClient(app_over(service, model, Settings("tiny"), metrics, capacity=1024)) as client:
        whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        stream = client.post("/v1/completions", json={**body, "stream": True}).text
        assert (
            whole == list(model.stream("abc", Options(mode="speculative", max_tokens=8), raw=True))[-1].text
        )
        assert stream.endswith("data: [DONE]\n\n")
        assert "replica_died" not in stream
        cut = client.post("/v1/completions", json={**body, "stream": True, "stream_canvas": True}).text
        assert '"code":"replica_died"' in cut
        assert cut.endswith("data: [DONE]\n\n")
        score = client.post("/v1/score", json={"context": "a", "continuations": ["b"]})
        assert score.json()["data"][0]["log_likelihood"] < 0
    assert b'unmask_generated_tokens_total{mode="speculative"} 16.0' in metrics.text()
