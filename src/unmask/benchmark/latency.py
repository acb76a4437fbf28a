"""How fast one request is written: this package's modes and other programs, taking turns on the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from unmask.benchmark.contender import Contender, Run
from unmask.evaluation.ledger import Ledger, Observer, StageProgress
from unmask.evaluation.prompts import Prompt

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class LatencyConfig:
    """What is asked: a number of tokens after each prompt, all contenders one after the other, round after round.

    `num_prompts` is of each kind. `conditions`: see `conditions_of`.
    """

    num_prompts: int
    max_tokens: int
    num_rounds: int
    conditions: Mapping[str, object]


@dataclass(frozen=True)
class Spread:
    """The median of some figures, with the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Sum up some figures."""
        return cls(median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Speed:
    """What a contender gave; every sample of a spread is a round, summed over its prompts.

    `tokens_per_s` counts the prefill's seconds and the first token, `decode_tokens_per_s` neither. `ratio` is that of
    `tokens_per_s` to the baseline's in the same round. `num_equal`: prompts whose text is in all rounds that of
    `reference`, another contender.
    """

    tokens_per_s: Spread
    decode_tokens_per_s: Spread
    first_token_s: Spread
    ratio: Spread
    tokens_per_forward: float | None
    num_forwards: int | None
    reference: str
    num_equal: int


@dataclass(frozen=True)
class LatencyReport:
    """All runs, by contender, prompt and round, and what they sum up to; `prompts` by their numbers."""

    config: LatencyConfig
    provenance: Mapping[str, object]
    model: Mapping[str, object]
    prompts: tuple[int, ...]
    baseline: str
    speeds: Mapping[str, Speed]
    runs: Mapping[str, tuple[tuple[Run, ...], ...]]


def run_latency(
    contenders: Sequence[Contender],
    prompts: Sequence[tuple[Prompt, Sequence[int]]],
    config: LatencyConfig,
    ledger: Ledger[Run],
    observe: Observer,
) -> dict[str, tuple[tuple[Run, ...], ...]]:
    """Let every contender write after every prompt, once short to warm up and then in turns; the runs by name.

    A machine's own speed varies within minutes, so contenders alternate prompt by prompt, and each round begins with
    another of them. Runs that the ledger has are not made again.
    """
    turns = [
        (contender, place)
        for number in range(config.num_rounds)
        for first in [number % len(contenders)]
        for place in range(len(prompts))
        for contender in (*contenders[first:], *contenders[:first])
    ]
    if len(ledger.records) < len(turns):
        for done, contender in enumerate(contenders):
            observe(StageProgress("warming up", done, len(contenders)))
            contender.write(prompts[0][1], WARM_UP_TOKENS)
        observe(StageProgress("warming up", len(contenders), len(contenders)))
    written = ledger.fill(
        turns, lambda turn: turn[0].write(prompts[turn[1]][1], config.max_tokens), "texts", observe
    )
    runs: dict[str, list[list[Run]]] = {each.name: [[] for _ in prompts] for each in contenders}
    for (contender, place), run in zip(turns, written, strict=True):
        runs[contender.name][place].append(run)
    return {name: tuple(tuple(own) for own in by_prompt) for name, by_prompt in runs.items()}


def speeds_of(
    runs: Mapping[str, Sequence[Sequence[Run]]], *, baseline: str, references: Mapping[str, str]
) -> dict[str, Speed]:
    """Sum up runs by contender, prompt and round; `references`: whose text each one's shall be."""
    base = _rates(runs[baseline])
    speeds = {}
    for name, by_prompt in runs.items():
        truths = [by_round[0].token_ids for by_round in runs[references[name]]]
        rounds = list(zip(*by_prompt, strict=True))
        rates = _rates(by_prompt)
        decoded = [
            sum(len(run.token_ids) - 1 for run in each) / sum(run.seconds - run.first_s for run in each)
            for each in rounds
        ]
        forwards = [run.num_forwards for run in rounds[0] if run.num_forwards is not None]
        decode_forwards = [
            run.num_decode_forwards for run in rounds[0] if run.num_decode_forwards is not None
        ]
        num_tokens = sum(len(run.token_ids) for run in rounds[0])
        speeds[name] = Speed(
            Spread.of(rates),
            Spread.of(decoded),
            Spread.of([median(run.first_s for run in each) for each in rounds]),
            Spread.of([rate / other for rate, other in zip(rates, base, strict=True)]),
            num_tokens / sum(decode_forwards) if sum(decode_forwards) else None,
            sum(forwards) if forwards else None,
            references[name],
            sum(
                all(run.token_ids == truth for run in own)
                for own, truth in zip(by_prompt, truths, strict=True)
            ),
        )
    return speeds


def _rates(by_prompt: Sequence[Sequence[Run]]) -> list[float]:
    """Return tokens per second, prefill included, of each round."""
    rounds = zip(*by_prompt, strict=True)
    return [sum(len(run.token_ids) for run in each) / sum(run.seconds for run in each) for each in rounds]
