"""Random mixes: a small engine, requests of all kinds that come and go, and the reference loop's answers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

from random_denoisers import letter_tokenizer, random_denoiser
from unmask.decoding.constraint import Constraint
from unmask.decoding.generate import generate
from unmask.decoding.generation import Generation
from unmask.decoding.logprobs import TokenLogprobs
from unmask.decoding.mode import MODES
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES
from unmask.engine.engine import Engine, Progress
from unmask.model.conditioning import Conditioning
from unmask.model.denoiser import Denoiser

TOKENIZER = letter_tokenizer()
REGEX = Constraint("regex", "(a|bc|d[abcd]{0,5}c)*")
"""Of letters that all models may write; b may also be a stop token."""

RULE_TEXTS = (
    "threshold:0.5",
    "top-k:2",
    "entropy-bound:1",
    "margin:2",
    "random:2",
    "left-to-right:3",
    "klass:0.3,0.5,1",
    "spaced",
    "factor",
)


@dataclass(frozen=True)
class Visit:
    """A request that comes before a step, and is aborted before another one unless it has finished by then."""

    prompt: tuple[int, ...]
    options: Options
    arrival: int = 0
    abortion: int | None = None


@dataclass(frozen=True)
class Mix:
    """An engine's sizes and its visits."""

    denoiser: Denoiser
    sizes: dict[str, Any]
    visits: tuple[Visit, ...]


@cache
def denoiser_of(kind: int) -> Denoiser:
    """Return one of seven random models: with a logit shift or without, next-token training, time and belief."""
    denoiser = random_denoiser(seed=kind % 3, num_allowed=4 if kind % 2 else 8, logit_shift=kind < 3)
    if kind < 6:
        return replace(denoiser, predicts_next=kind != 5)
    ports = Conditioning(denoiser.transformer.config.hidden_size, time=True, belief=True).requires_grad_(
        False
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in ports.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    return replace(denoiser, conditioning=ports)


@cache
def truth(denoiser_kind: int, prompt: tuple[int, ...], options: Options) -> Generation:
    return generate(denoiser_of(denoiser_kind), TOKENIZER, prompt, options)


def random_options(generator: random.Random, *, predicts_next: bool) -> Options:
    mode = generator.choice(MODES) if predicts_next else "diffusion"
    canvas = mode != "ar"
    block_length = generator.randint(1, 7) if canvas else None
    tree_size = generator.choice([None, 1, 3, 7]) if mode == "speculative" else None
    num_predrafts = generator.choice([None, 0, 1, 2, 9]) if mode == "speculative" else None
    denoises = mode == "diffusion"
    constraint = generator.choice([None, None, None, REGEX])
    return Options(
        mode=mode,
        max_tokens=generator.randint(1, 18),
        block_length=block_length,
        tree_size=tree_size,
        num_predrafts=num_predrafts if block_length != 1 else None,
        rule=RULES.parse(generator.choice(RULE_TEXTS)) if denoises else None,
        num_steps=generator.choice([None, 1, 2, 3]) if denoises else None,
        temperature=generator.choice([0.0, 0.0, 0.7, 1.0]),
        top_k=generator.choice([0, 0, 3]),
        top_p=generator.choice([1.0, 1.0, 0.8]),
        min_p=generator.choice([0.0, 0.0, 0.1]),
        logit_bias=generator.choice([(), (), ((3, 4.0), (4, -100.0))]),
        presence_penalty=generator.choice([0.0, 0.0, 2.0]),
        frequency_penalty=generator.choice([0.0, 0.0, 1.0, -0.5]),
        num_logprobs=None if denoises else generator.choice([None, 0, 3]),
        seed=generator.randrange(3),
        constraint=constraint,
        stop=() if constraint else generator.choice([(), (), ("ab", "c d")]),
        stop_token_ids=generator.choice([(0,) if constraint else (), (0, 3)]),
    )


def random_mix(seed: int) -> tuple[int, Mix]:
    """Return the mix of this number, and which model it is for."""
    generator = random.Random(seed)
    kind = generator.randrange(7)
    denoiser = denoiser_of(kind)
    stem = [generator.randint(2, 9) for _ in range(20)]  # prompts begin alike
    visits = []
    for _ in range(generator.randint(1, 7)):
        tail = [generator.randint(2, 9) for _ in range(generator.randint(1, 6))]
        options = random_options(generator, predicts_next=denoiser.predicts_next)
        arrival = generator.randint(0, 12)
        abortion = arrival + generator.randint(1, 15) if generator.random() < 0.25 else None
        visits.append(
            Visit((*stem[: generator.randint(0, 20)], *tail), options, arrival=arrival, abortion=abortion)
        )
    page_size = generator.randint(1, 6)
    most = max(-(-(len(v.prompt) + v.options.max_tokens) // page_size) for v in visits)
    sizes = {
        "page_size": page_size,
        "num_pages": most + generator.choice([0, 1, 3, 40]),
        "token_budget": max(
            generator.choice([8, 12, 24, 200]), *(1 + v.options.most_proposed for v in visits), 8
        ),
        "max_requests": generator.choice([1, 2, 4, 8]),
    }
    return kind, Mix(denoiser, sizes, tuple(visits))


@dataclass(frozen=True)
class Played:
    """What came of a mix: generations by visit, `None` for the aborted; and how often a request lost its pages."""

    generations: tuple[Generation | None, ...]
    num_preemptions: int


def play(mix: Mix) -> Played:
    """Run a mix to its end, proving at every step that pages add up and that events tell each token once."""
    engine = Engine(mix.denoiser, TOKENIZER, **mix.sizes)
    places: dict[int, int] = {}
    told: dict[int, list[int]] = {}
    explained: dict[int, list[TokenLogprobs]] = {}
    done: dict[int, Generation] = {}
    aborted: set[int] = set()
    num_preemptions = 0
    schedule = engine.scheduler.schedule

    def counted() -> object:
        nonlocal num_preemptions
        batch = schedule()
        num_preemptions += len(batch.preempted)
        return batch

    engine.scheduler.schedule = counted  # type: ignore[method-assign,assignment]
    step = 0
    while len(places) < len(mix.visits) or engine.has_work:
        for place, visit in enumerate(mix.visits):
            if visit.arrival == step:
                number = engine.add(visit.prompt, visit.options)
                places[number], told[number], explained[number] = place, [], []
            ids = [number for number, other in places.items() if other == place]
            if visit.abortion == step and ids and ids[0] not in done:
                engine.abort(ids[0])
                aborted.add(ids[0])
        for event in engine.step():
            assert event.request_id not in aborted | set(done)
            if isinstance(event, Progress):
                told[event.request_id] += event.token_ids
                explained[event.request_id] += event.logprobs
            else:
                done[event.request_id] = event.generation
        engine.check()
        step += 1
        assert step < 3000, "no progress"
    pool = engine.scheduler.pool
    assert pool.num_available == pool.num_pages
    assert len(done) + len(aborted) == len(mix.visits)
    for number, generation in done.items():
        assert tuple(told[number]) == generation.token_ids
        assert tuple(explained[number]) == (generation.logprobs or ())
    by_place = {places[number]: generation for number, generation in done.items()}
    return Played(tuple(by_place.get(place) for place in range(len(mix.visits))), num_preemptions)


def essence(generation: Generation) -> tuple[object, ...]:
    """Return all that must not depend on what ran beside a request, or in how many pieces its prompt ran."""
    return (
        generation.token_ids,
        generation.text,
        generation.finish_reason,
        generation.decided_at,
        generation.accepted_lengths,
        generation.num_decode_forwards,
        generation.mode,
        generation.seed,
        generation.prompt_tokens,
    )


def differences(kind: int, mix: Mix, played: Played) -> Sequence[str]:
    """Describe the visits whose generation is not the reference loop's."""
    found = []
    for visit, ours in zip(mix.visits, played.generations, strict=True):
        wanted = truth(kind, visit.prompt, visit.options)
        if ours is None:
            continue
        if essence(ours) != essence(wanted):
            found.append(f"{visit}\n  ours   {essence(ours)}\n  wanted {essence(wanted)}")
        elif not same_logprobs(ours, wanted):
            found.append(f"{visit}\n  ours   {ours.logprobs}\n  wanted {wanted.logprobs}")
    return found


def same_logprobs(one: Generation, other: Generation) -> bool:
    """Say whether log-probabilities are equal but for the rounding of sums of other shapes."""
    if one.logprobs is None or other.logprobs is None:
        return one.logprobs is other.logprobs
    return len(one.logprobs) == len(other.logprobs) == one.num_tokens and all(
        ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        and [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-4)
        and ours.logprob == pytest.approx(dict(ours.top).get(token, ours.logprob))
        for ours, theirs, token in zip(one.logprobs, other.logprobs, one.token_ids, strict=True)
    )
