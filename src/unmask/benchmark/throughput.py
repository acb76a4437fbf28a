"""How fast many requests are written together: each mode of the engine, by the number of requests at once."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unmask.benchmark.contender import calibrated, engine_for, number_format, options_of
from unmask.benchmark.latency import Spread
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import Mode
from unmask.engine.engine import Finished
from unmask.engine.planner import Planner
from unmask.evaluation.ledger import Ledger, Observer, StageProgress

_NUM_LEARNT = 6


@dataclass(frozen=True)
class ThroughputConfig:
    """What is asked: as many requests at once as `concurrencies` says, in every mode, round after round.

    `num_prompts` is of each kind; where they are fewer than the requests, texts come more than once. `conditions`: see
    `conditions_of`.
    """

    concurrencies: tuple[int, ...]
    modes: tuple[Mode, ...]
    max_tokens: int
    num_rounds: int
    num_prompts: int
    conditions: Mapping[str, object]


@dataclass(frozen=True)
class Crowd:
    """One run: so many requests that came together, until the last is finished. `num_forwards`: the engine's."""

    mode: Mode
    number_format: str
    concurrency: int
    num_tokens: int
    num_forwards: int
    num_decode_forwards: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(frozen=True)
class Point:
    """What a mode gave at a number of requests, over rounds; TPF is over the requests' own decode forwards."""

    mode: Mode
    number_format: str
    concurrency: int
    tokens_per_s: Spread
    tokens_per_forward: float | None


@dataclass(frozen=True)
class Balance:
    """What `auto` gave over the best of the other modes that write the text of ar, by the medians of both."""

    number_format: str
    concurrency: int
    best: Mode
    auto_over_best: float


@dataclass(frozen=True)
class ThroughputReport:
    """All runs and what they sum up to; `prompts` by their numbers."""

    config: ThroughputConfig
    provenance: Mapping[str, object]
    model: Mapping[str, object]
    prompts: tuple[int, ...]
    points: tuple[Point, ...]
    balances: tuple[Balance, ...]
    crowds: tuple[Crowd, ...] = field(repr=False)


def run_throughput(
    models: Sequence[LanguageModel],
    prompts: Sequence[Sequence[int]],
    config: ThroughputConfig,
    ledger: Ledger[Crowd],
    observe: Observer,
) -> list[Crowd]:
    """Run every mode with every number of requests, taking turns; prompts are used again where they are too few.

    Before that the planner of mode auto writes some texts alone, which are not timed. Runs that the ledger has are not
    made again.
    """
    planners: list[Planner] = []
    for done, model in enumerate(models):
        observe(StageProgress("measuring forwards", done, len(models)))
        planners.append(calibrated(model))
        # A warm-up, and for the planner what one that serves has long learnt: how far drafts hold.
        own: Mode = "auto" if "auto" in config.modes else config.modes[0]
        count = _NUM_LEARNT if own == "auto" else 1
        for prompt in prompts[:count]:
            _run(model, planners[-1], own, [prompt], max_tokens=config.max_tokens)
    observe(StageProgress("measuring forwards", len(models), len(models)))
    cases = [
        (concurrency, number, mode)
        for concurrency in config.concurrencies
        for _ in range(config.num_rounds)
        for number in range(len(models))
        for mode in config.modes
    ]

    def run(case: tuple[int, int, Mode]) -> Crowd:
        concurrency, number, mode = case
        chosen = [prompts[place % len(prompts)] for place in range(concurrency)]
        return _run(models[number], planners[number], mode, chosen, max_tokens=config.max_tokens)

    return ledger.fill(cases, run, "runs", observe)


def points_of(crowds: Sequence[Crowd]) -> tuple[Point, ...]:
    """Sum up the rounds of every mode and number of requests."""
    return tuple(
        Point(
            own[0].mode,
            own[0].number_format,
            own[0].concurrency,
            Spread.of([crowd.tokens_per_s for crowd in own]),
            sum(crowd.num_tokens for crowd in own) / forwards if forwards else None,
        )
        for own in _grouped(crowds)
        for forwards in [sum(crowd.num_decode_forwards for crowd in own)]
    )


def balances_of(points: Sequence[Point]) -> tuple[Balance, ...]:
    """Compare `auto` with the better of ar and speculative wherever all were run."""
    balances = []
    for auto in (point for point in points if point.mode == "auto"):
        place = auto.number_format, auto.concurrency
        fixed = [
            point
            for point in points
            if (point.number_format, point.concurrency) == place and point.mode in ("ar", "speculative")
        ]
        if fixed:
            best = max(fixed, key=lambda point: point.tokens_per_s.median)
            ratio = auto.tokens_per_s.median / best.tokens_per_s.median
            balances.append(Balance(*place, best.mode, ratio))
    return tuple(balances)


def _run(
    model: LanguageModel,
    planner: Planner,
    mode: Mode,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
) -> Crowd:
    """Add all requests at once and run until the last is finished."""
    engine = engine_for(model, [len(prompt) for prompt in prompts], max_tokens, planner)
    options = options_of(model, mode, max_tokens)
    num_forwards = num_tokens = num_decode_forwards = 0
    began = time.perf_counter()
    for prompt in prompts:
        engine.add(prompt, options)
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Finished):
                num_tokens += event.generation.num_tokens
                num_decode_forwards += event.generation.num_decode_forwards
        num_forwards += 1
    seconds = time.perf_counter() - began
    return Crowd(
        mode, number_format(model), len(prompts), num_tokens, num_forwards, num_decode_forwards, seconds
    )


def _grouped(crowds: Sequence[Crowd]) -> Iterator[list[Crowd]]:
    groups: dict[tuple[str, str, int], list[Crowd]] = {}
    for crowd in crowds:
        groups.setdefault((crowd.number_format, crowd.mode, crowd.concurrency), []).append(crowd)
    yield from groups.values()
