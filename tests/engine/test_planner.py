"""The planner: measured costs, acceptance by place, and choices that are the best there are."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_requests import plain_request

from unmask.engine.acceptance import Acceptance, Verdict
from unmask.engine.cost_curve import CostCurve
from unmask.engine.pages import PagePool
from unmask.engine.planner import (
    BLOCK_LENGTHS,
    BRANCHINGS,
    NUMS_PREDRAFTS,
    STEP,
    Beside,
    Planner,
    Way,
    _outlook,
)
from unmask.engine.scheduler import Scheduler

Cost = Callable[[float], float]


def curve_of(cost: Cost) -> CostCurve:
    return CostCurve((tokens, cost(tokens)) for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))


def flat_then_linear(tokens: float) -> float:
    """A machine that reads its weights in the time in which it computes 40 tokens."""
    return max(tokens, 40) / 1000


def linear(tokens: float) -> float:
    """A machine on which a token costs as much wherever it runs."""
    return tokens / 1000


def two_cores(tokens: float) -> float:
    """A small model on two cores: half of a single token's cost is overhead."""
    return 0.012 + 0.004 * tokens


def test_a_curve_goes_through_its_measurements_and_on_by_the_last_slope() -> None:
    curve = CostCurve([(1, 1.0), (8, 2.0), (16, 6.0)])
    assert [curve.seconds(tokens) for tokens in (0, 1, 4.5, 8, 12, 16, 20)] == [1, 1, 1.5, 2, 4, 6, 8]


def test_measurements_of_a_size_are_averaged_and_fade() -> None:
    curve = CostCurve([(4, 1.0), (4, 3.0)])
    assert curve.seconds(4) == 2.0
    assert not curve.is_known
    for _ in range(500):
        curve.observe(4, 10.0)
    assert curve.seconds(4) == pytest.approx(10.0, rel=0.01)


@given(
    st.lists(st.tuples(st.integers(1, 600), st.floats(1e-4, 10)), min_size=1, max_size=30),
    st.lists(st.floats(0, 2000), min_size=2, max_size=20),
)
def test_a_curve_never_falls(measurements: list[tuple[int, float]], places: list[float]) -> None:
    curve = CostCurve(measurements)
    seconds = [curve.seconds(tokens) for tokens in sorted(places)]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(seconds))
    lowest, highest = min(s for _, s in measurements), max(s for _, s in measurements)
    most = max(tokens for tokens, _ in measurements)
    assert lowest * (1 - 1e-9) <= curve.seconds(1)
    assert curve.seconds(most) <= highest * (1 + 1e-9) or most > 1
    again = CostCurve.from_json(curve.to_json())
    assert [again.seconds(tokens) for tokens in sorted(places)] == seconds


def test_a_curve_without_measurements_or_with_strange_ones_says_so() -> None:
    with pytest.raises(ValueError, match="nothing has been measured"):
        CostCurve().seconds(1)
    for tokens, seconds in ((0, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="is no measurement"):
            CostCurve([(tokens, seconds)])
    for text in ("{", "3", '[["a"]]'):
        with pytest.raises(ValueError):
            CostCurve.from_json(text)


def test_acceptance_is_learnt_by_place() -> None:
    generator = random.Random(0)
    truth = [0.95, 0.8, 0.5, 0.7]
    seen = Acceptance()
    for _ in range(3000):
        held = next((i for i, rate in enumerate(truth) if generator.random() > rate), len(truth))
        seen.observe(len(truth), held)
    assert seen.rates(4) == pytest.approx(truth, abs=0.08)
    assert seen.rates(6)[4:] == [seen.rates(4)[3]] * 2  # beyond what was drafted: like the place before
    expected = [1, 1.95, 1.95 + 0.95 * 0.8, 1.95 + 0.95 * 0.8 * 1.5, 1.95 + 0.95 * 0.8 * (1.5 + 0.5 * 0.7)]
    assert seen.expected_tokens(4) == pytest.approx(expected, abs=0.2)


def test_a_request_is_judged_like_all_until_it_shows_otherwise() -> None:
    overall = Acceptance()
    for _ in range(100):
        overall.observe(2, 2)
    own = Acceptance(overall)
    assert own.rates(2) == pytest.approx(overall.rates(2))
    for _ in range(20):
        own.observe(2, 0)
    assert own.rates(1)[0] < 0.3
    assert overall.rates(1)[0] > 0.9


@pytest.mark.parametrize("cost", [flat_then_linear, linear, two_cores])
@given(data=st.data())
@settings(max_examples=40)
def test_a_choice_of_linear_drafts_is_the_best_of_all_subsets_and_lengths(
    cost: Cost, data: st.DataObject
) -> None:
    planner = Planner(curve_of(cost), tree=Beside(1e9))
    planner.other_tokens = data.draw(st.floats(0, 60))
    planner.other_rate = data.draw(st.floats(0, 1)) * planner.other_tokens
    limits = dict(enumerate(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))))
    for number in limits:
        for verdict in data.draw(st.lists(st.integers(0, 8), max_size=6)):
            planner.observe_verdict(number, Verdict(8, verdict))
    choice = planner.choose(limits)

    def rate(lengths: dict[int, int]) -> float:
        drafting = {number: length for number, length in lengths.items() if length}
        expected = sum(
            planner._of(n).acceptance(0).expected_tokens(length)[length] for n, length in drafting.items()
        )
        steppers = len(lengths) - len(drafting)
        tokens = planner.other_tokens + steppers + sum((1 + 2 * length) / 2 for length in drafting.values())
        return (planner.other_rate + steppers + expected / 2) / planner.curve.seconds(tokens)

    candidates = [
        {number: min(length, limits[number]) * (number in subset) for number in limits}
        for length in BLOCK_LENGTHS
        for count in range(len(limits) + 1)
        for subset in itertools.combinations(limits, count)
    ]
    best = max(map(rate, candidates))
    lengths = {number: way.block_length for number, way in choice.ways.items()}
    assert rate(lengths) == pytest.approx(choice.tokens_per_s)
    assert choice.tokens_per_s == pytest.approx(best, rel=1e-9 if len(set(limits.values())) == 1 else 0.03)


def test_one_request_drafts_and_a_crowd_steps() -> None:
    planner = Planner(curve_of(flat_then_linear))
    for _ in range(50):
        planner.observe_verdict(0, Verdict(8, 6))
    alone = planner.choose({0: 16}).ways[0]
    assert alone.block_length >= 8
    few = planner.choose(dict.fromkeys(range(6), 16)).ways.values()
    assert 0 < max(way.num_open for way in few) < alone.num_open
    crowd = planner.choose(dict.fromkeys(range(64), 16)).ways
    assert set(crowd.values()) == {STEP}


def nearly_flat(tokens: float) -> float:
    """A machine that reads its weights in the time in which it computes 400 tokens."""
    return max(tokens, 400) / 1000


def test_what_costs_nothing_is_drafted_and_what_costs_is_not() -> None:
    """The flatter the curve, the more a forward holds: trees and pre-drafts, then drafts, then steps."""
    opened = [
        Planner(curve_of(cost)).choose({0: 16}).ways[0].num_open
        for cost in (nearly_flat, flat_then_linear, two_cores, linear)
    ]
    assert opened == sorted(opened, reverse=True)
    assert opened[0] > 100
    assert opened[-1] == 0
    flat = Planner(curve_of(nearly_flat)).choose({0: 16}).ways[0]
    assert flat.branching
    assert flat.num_predrafts


def test_trees_and_predrafts_keep_to_the_engines_budget() -> None:
    for most in (20, 40, 80, 200):
        way = Planner(curve_of(nearly_flat), most_open=most).choose({0: 16}).ways[0]
        assert 0 < way.num_open <= most


def test_trees_that_hold_no_more_and_predrafts_that_miss_are_left() -> None:
    planner = Planner(curve_of(flat_then_linear))
    first = planner.choose({0: 8}).ways[0]
    assert not first.is_linear
    for _ in range(300):
        planner.observe_verdict(0, Verdict(8, 3))
        for branching in BRANCHINGS[1:]:
            planner.observe_verdict(0, Verdict(8, 3, branching=branching))
        for branching in BRANCHINGS:
            for number in NUMS_PREDRAFTS[1:]:
                planner.observe_verdict(0, Verdict(8, 3, branching=branching, num_predrafts=number))
    assert planner.choose({0: 8}).ways[0].is_linear


def test_what_trees_cost_beside_their_tokens_counts() -> None:
    planner = Planner(curve_of(nearly_flat))
    assert not planner.choose({0: 8}).ways[0].is_linear
    before = planner.curve.seconds(32)
    for _ in range(50):
        planner.observe_forward(32, 2.0, num_trees=1, other_tokens=0, other_decided=0)
    assert planner.choose({0: 8}).ways[0].is_linear
    assert planner.curve.seconds(32) == before  # none of it is the tokens'


def simulated_cycles(way: Way, rates: list[float], hit: float) -> tuple[float, float]:
    """Return tokens decided and run per forward, over many cycles of drafts whose places hold at these rates."""
    generator = random.Random(0)
    decided = tokens = forwards = 0
    ahead = False
    for _ in range(20_000):
        length = way.block_length - int(ahead)
        if not ahead:
            tokens, forwards = tokens + 1 + length, forwards + 1
        held = next((place for place in range(length) if generator.random() > rates[place]), length)
        decided += held + 1
        tokens, forwards = tokens + way.num_open + int(ahead), forwards + 1
        ahead = bool(way.num_predrafts) and generator.random() < hit
    return decided / forwards, tokens / forwards


@pytest.mark.parametrize("way", [Way(8, 2, 0), Way(8, 0, 2), Way(4, 4, 8)])
def test_the_outlook_of_a_way_is_what_its_cycles_come_to(way: Way) -> None:
    planner, generator = Planner(curve_of(two_cores)), random.Random(1)
    for _ in range(60):
        for ahead in (False, True):
            verdict = Verdict(8, generator.randint(2, 8), way.branching, ahead)
            planner.observe_verdict(0, replace(verdict, num_predrafts=way.num_predrafts, hit=bool(_ % 3)))
    seen = planner._of(0)
    for ahead in (False, True):  # one law for both, so that a simulation needs one
        seen._acceptances[way.branching, ahead] = seen.acceptance(way.branching)
    rates = seen.acceptance(way.branching).rates(way.block_length)
    decided, tokens = simulated_cycles(way, rates, seen.hit_rate(way.num_predrafts))
    outlook = _outlook(seen, way)
    assert outlook.decided == pytest.approx(decided, rel=0.03)
    assert outlook.tokens == pytest.approx(tokens, rel=0.03)


def test_those_that_accept_more_draft_first() -> None:
    planner = Planner(curve_of(two_cores))
    for _ in range(30):
        planner.observe_verdict(0, Verdict(4, 0))
        planner.observe_verdict(1, Verdict(4, 4))
    ways = planner.choose({0: 8, 1: 8}).ways
    assert ways[0] == STEP
    assert ways[1].block_length > 0


def test_a_plan_leaves_what_is_open_alone_and_keeps_to_the_room() -> None:
    pool = PagePool(64, 4)
    planner = Planner(curve_of(flat_then_linear))
    drafting = plain_request(pool, number=0, mode="speculative", limit=20)
    ending = plain_request(pool, number=1, mode="speculative", limit=6)
    last = plain_request(pool, number=2, mode="speculative", limit=2)
    for request in (drafting, ending, last):
        request.take_next(7)
    drafting.propose([1, 2, 3, 4])
    planner.plan({drafting: 16, ending: 16, last: 16})
    assert (drafting.mode, drafting.block_length, drafting.kind) == ("speculative", 4, "verify")
    assert (ending.mode, ending.block_length) == ("speculative", 4)
    assert (last.mode, last.kind) == ("ar", "step")


def test_long_steppers_are_probed_where_it_could_pay_and_only_there() -> None:
    for cost, expected in ((two_cores, True), (linear, False)):
        planner = Planner(curve_of(cost))
        for _ in range(100):
            planner.observe_verdict(0, Verdict(8, 0))
        request = plain_request(PagePool(64, 4), mode="speculative", limit=200)
        request.take_next(7)
        probed = False
        for _ in range(70):
            planner.plan({request: 8})
            probed |= request.kind == "draft"
            if request.kind == "step":
                request.take_next(7)
        assert probed == expected


def simulated_rate(cost: Cost, acceptance: float, concurrency: int, block_length: int | None) -> float:
    """Return tokens per second of virtual time at a fixed block length (0: steps), or as the planner wants (`None`)."""
    generator, limit = random.Random(1), 100 + 2000 // concurrency
    scheduler = Scheduler(PagePool(4000, 8), token_budget=2000, max_requests=concurrency)
    planner = Planner(curve_of(cost), tree=Beside(1e9))  # what is simulated has no trees
    mode = "ar" if block_length == 0 else "speculative"
    for number in range(concurrency):
        length = 16 if block_length is None else block_length
        scheduler.add(
            plain_request(
                scheduler.pool, number=number, mode=mode, block_length=length, prompt=(1,), limit=limit
            )
        )
    seconds, num_tokens = 0.0, 0
    while len(scheduler.running) == concurrency or not num_tokens:
        if block_length is None:
            planner.plan(dict.fromkeys(scheduler.running, 16))
        batch = scheduler.schedule()
        now = cost(batch.num_tokens)
        seconds += now
        planner.observe_forward(batch.num_tokens, now, other_tokens=0, other_decided=0)
        for share in batch.shares:
            request, before = share.request, len(share.request.written.token_ids)
            match request.kind:
                case "step":
                    request.store(share.stored_end)
                    request.take_next(1)
                case "draft":
                    request.store(share.stored_end)
                    request.propose([1] * request.num_open)
                case "verify":
                    drafted = len(request.drafts)
                    held = next((i for i in range(drafted) if generator.random() > acceptance), drafted)
                    request.accept(held, 1)
                    planner.observe_verdict(request.number, Verdict(drafted, held))
            num_tokens += len(request.written.token_ids) - before
            if request.is_finished:
                scheduler.remove(request)
    return num_tokens / seconds


@pytest.mark.parametrize("acceptance", [0.4, 0.9])
@pytest.mark.parametrize("cost", [flat_then_linear, two_cores])
@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_planned_is_never_far_under_the_best_fixed_choice(
    cost: Cost, acceptance: float, concurrency: int
) -> None:
    """In virtual time, with requests, scheduler and pages as they are, until the first request ends."""
    fixed = {length: simulated_rate(cost, acceptance, concurrency, length) for length in (0, 2, 4, 8, 16)}
    planned = simulated_rate(cost, acceptance, concurrency, None)
    assert planned > 0.95 * max(fixed.values()), fixed
