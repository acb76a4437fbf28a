"""What Prometheus may ask about a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from unmask.decoding.generation import Generation
from unmask.engine.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_TOKENS_PER_FORWARD = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "unmask_requests", "HTTP requests by route and outcome.", ("route", "outcome"), registry=registry
        )
        self._request_s = Histogram(
            "unmask_request_seconds", "Arrival to end.", ("route",), buckets=_SECONDS, registry=registry
        )
        self._first_token_s = Histogram(
            "unmask_time_to_first_token_seconds",
            "Arrival of an answer's request to its first decided token.",
            ("mode",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "unmask_prompt_tokens", "Prompt tokens of finished answers.", ("mode",), registry=registry
        )
        self._tokens = Counter(
            "unmask_generated_tokens", "Tokens of finished answers.", ("mode",), registry=registry
        )
        self._forwards = Counter(
            "unmask_request_forwards",
            "Forwards that finished answers took part in (NFE), prefill included.",
            ("mode",),
            registry=registry,
        )
        self._tokens_per_s = Histogram(
            "unmask_tokens_per_second",
            "Tokens of an answer by its seconds of decoding.",
            ("mode",),
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
            registry=registry,
        )
        self._tokens_per_forward = Histogram(
            "unmask_tokens_per_forward",
            "Tokens of an answer by its own decode forwards (TPF).",
            ("mode",),
            buckets=_TOKENS_PER_FORWARD,
            registry=registry,
        )
        self._accepted = Histogram(
            "unmask_accepted_drafts",
            "Accepted tokens of a draft, without the verifier's.",
            buckets=_LENGTHS,
            registry=registry,
        )
        self._steps = Counter(
            "unmask_engine_steps", "Forwards of the engine, each for many answers.", registry=registry
        )
        self._choices = Counter(
            "unmask_planner_choices",
            "What the planner chose for an answer in mode auto before a forward; block_length 0 is a step, tree_size 0 "
            "one candidate at a place.",
            ("block_length", "tree_size", "num_predrafts"),
            registry=registry,
        )
        self._running = Gauge("unmask_answers_running", "Answers with pages.", registry=registry)
        self._waiting = Gauge("unmask_answers_waiting", "Answers in the queue.", registry=registry)
        self._pages = Gauge("unmask_pages", "Pages of keys and values.", registry=registry)
        self._free_pages = Gauge("unmask_pages_available", "Pages that no answer holds.", registry=registry)
        self._failures = Counter(
            "unmask_engine_failures", "Forwards that raised, which should not be.", registry=registry
        )

    def count_request(self, route: str, outcome: str, seconds: float) -> None:
        """Count a request at its end."""
        self._requests.labels(route, outcome).inc()
        self._request_s.labels(route).observe(seconds)

    def count_first_token(self, mode: str, seconds: float) -> None:
        """Count the first decided token of an answer."""
        self._first_token_s.labels(mode).observe(seconds)

    def count_generation(self, generation: Generation) -> None:
        """Count a finished answer."""
        mode, seconds = generation.mode, generation.seconds["decode"]
        self._prompt_tokens.labels(mode).inc(generation.prompt_tokens)
        self._tokens.labels(mode).inc(generation.num_tokens)
        self._forwards.labels(mode).inc(generation.num_forwards)
        if generation.tokens_per_forward is not None:
            self._tokens_per_forward.labels(mode).observe(generation.tokens_per_forward)
            if seconds:
                self._tokens_per_s.labels(mode).observe(generation.num_tokens / seconds)
        for length in generation.accepted_lengths:
            self._accepted.observe(length)

    def count_step(self, engine: Engine) -> None:
        """Count a forward of the engine, and note its state."""
        self._steps.inc()
        if engine.choice is not None:
            for way in engine.choice.ways.values():
                tree_size = way.num_candidates if way.branching else 0
                self._choices.labels(way.block_length, tree_size, way.num_predrafts).inc()
        self.note(engine)

    def note(self, engine: Engine) -> None:
        """Note the engine's state."""
        scheduler = engine.scheduler
        self._running.set(len(scheduler.running))
        self._waiting.set(len(scheduler.waiting))
        self._pages.set(scheduler.pool.num_pages)
        self._free_pages.set(scheduler.pool.num_available)

    def count_failure(self) -> None:
        """Count a forward that raised."""
        self._failures.inc()

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)
