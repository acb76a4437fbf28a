"""Replicas on Ray Serve: one deployment, called by its handle and streamed; Ray starts again what dies."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError

from unmask.engine.engine import Engine
from unmask.errors import UsageError
from unmask.serving.errors import ServingError
from unmask.serving.metrics import Metrics
from unmask.serving.replicas import ReplicaDiedError
from unmask.serving.service import Service
from unmask.serving.ticket import News, Order

_NAME = "unmask"
_HEALTH_PERIOD_S = 5.0


class Replica:
    """A service in a process of Ray's, which sends it no more orders than it runs at once."""

    async def __init__(self, open_engine: Callable[[], Engine]) -> None:  # type: ignore[misc]
        engine = await asyncio.to_thread(open_engine)
        self._service = Service(engine, Metrics(), max_queue=engine.scheduler.max_requests)
        self._service.start()

    async def stream(self, order: Order, is_watched: bool) -> AsyncGenerator[News | ServingError, None]:
        """Yield what happens to an answer; a refusal is one of the events, for Ray would wrap what is raised."""
        try:
            ticket = await self._service.submit([order], is_watched=is_watched)
            try:
                async for _, news in ticket:
                    yield news
            finally:
                ticket.close()
        except UsageError as error:
            yield ServingError.of_usage(error)
        except ServingError as error:
            yield error

    def check_health(self) -> None:
        """Raise where Ray should start another."""
        if not self._service.is_alive:
            raise RuntimeError("the engine has failed")


class RayReplicas:
    """Replicas in the cluster that RAY_ADDRESS names, or else in one on this machine that ends with this process.

    `open_engine` runs in each. `max_requests`: most answers that a replica runs at once; others wait here. Every
    replica has an equal share of the smallest node's processors, and a GPU if it wants one. Returns when all are up.
    """

    def __init__(
        self, open_engine: Callable[[], Engine], *, num_replicas: int, max_requests: int, on_gpu: bool
    ) -> None:
        ray.init(include_dashboard=False)
        serve.start(proxy_location="Disabled")
        num_cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        smallest = min((number for number in num_cpus if number), default=1)
        deployment = serve.deployment(
            Replica,
            num_replicas=num_replicas,
            max_ongoing_requests=max_requests,
            health_check_period_s=_HEALTH_PERIOD_S,
            ray_actor_options={"num_cpus": max(1, smallest // num_replicas), "num_gpus": int(on_gpu)},
        )
        handle = serve.run(deployment.bind(open_engine), name=_NAME, route_prefix=None)
        self._handle: Any = handle.options(stream=True, method_name="stream")

    async def stream(self, order: Order, *, is_watched: bool) -> AsyncGenerator[News, None]:
        """Yield what happens to an answer in the less busy of two replicas; see `Replicas.stream`."""
        response = self._handle.remote(order, is_watched)
        try:
            async for news in response:
                if isinstance(news, ServingError):
                    raise news
                yield news
        except RayActorError as error:
            raise ReplicaDiedError from error
        finally:
            response.cancel()

    async def stop(self) -> None:
        """End the replicas; a cluster of this process ends too."""
        await asyncio.to_thread(serve.shutdown)
        ray.shutdown()
