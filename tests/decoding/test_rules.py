"""Rules against their definitions, and the guarantees that no rule can break."""

import itertools
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.decoding.rules import (
    RULES,
    EntropyBound,
    Factor,
    Klass,
    LeftToRight,
    Margin,
    Random,
    Rule,
    Spaced,
    Threshold,
    TopK,
    View,
    choose,
    leading,
)
from unmask.errors import UsageError
from unmask.testing import check_rule

OURS = [
    Threshold(),
    Threshold(0.0),
    Threshold(2.0),
    TopK(),
    TopK(3),
    EntropyBound(),
    EntropyBound(0.0),
    EntropyBound(5.0),
    Margin(2),
    Random(),
    Random(3),
    LeftToRight(),
    LeftToRight(4),
    Factor(),
    Factor(0.0),
    Factor(5.0),
    Klass(),
    Klass(0.5, 0.006, 3),
    Spaced(),
    Spaced(1.3),
    Spaced(3.0),
]


def view_of(
    values: list[float] | None = None,
    *,
    is_open: list[bool] | None = None,
    entropy: list[float] | None = None,
    margin: list[float] | None = None,
    steps_left: int | None = None,
    seed: int = 0,
    step: int = 1,
    start: int = 100,
    changes: list[list[float]] | None = None,
) -> View:
    """Return a view of one canvas."""
    length = len(values or entropy or margin or [])
    zeros = [0.0] * length
    return View(
        open=torch.tensor([is_open or [True] * length]),
        confidence=torch.tensor([values or zeros]),
        entropy=torch.tensor([entropy or zeros]),
        margin=torch.tensor([margin or zeros]),
        positions=torch.arange(start, start + length)[None],
        seeds=(seed,),
        steps=(step,),
        steps_left=(steps_left,),
        changes=torch.tensor([changes]) if changes else torch.zeros(1, length, 0),
    )


def places(chosen: Tensor) -> list[int]:
    return chosen[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("rule", OURS, ids=repr)
def test_contract(rule: Rule) -> None:
    check_rule(rule)


def test_threshold() -> None:
    view = view_of([0.95, 0.9, 0.91, 0.2])
    assert places(choose(Threshold(0.9), view)) == [0, 2]
    assert places(choose(Threshold(0.99), view)) == [0]
    assert places(choose(Threshold(0.0), view)) == [0, 1, 2, 3]


def test_top_k() -> None:
    view = view_of([0.1, 0.9, 0.5, 0.9], is_open=[True, False, True, True])
    assert places(choose(TopK(1), view)) == [3]
    assert places(choose(TopK(2), view)) == [2, 3]
    assert places(choose(TopK(9), view)) == [0, 2, 3]


def test_margin_orders_by_margin_alone() -> None:
    view = view_of([0.9, 0.1, 0.1], margin=[0.1, 0.3, 0.2])
    assert places(choose(Margin(1), view)) == [1]
    assert places(choose(Margin(2), view)) == [1, 2]


@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=8), st.floats(0, 3), st.data())
def test_entropy_bound_is_the_longest_prefix_within_the_bound(
    entropies: list[float], gamma: float, data: st.DataObject
) -> None:
    is_open = data.draw(st.lists(st.booleans(), min_size=len(entropies), max_size=len(entropies)).filter(any))
    chosen = choose(EntropyBound(gamma), view_of(entropy=entropies, is_open=is_open))
    values = sorted(h for h, usable in zip(entropies, is_open, strict=True) if usable)
    fits = [n for n in range(1, len(values) + 1) if sum(values[:n]) - max(values[:n]) <= gamma]
    assert (
        abs(int(chosen.sum()) - max(fits)) == 0
        or min(abs(sum(values[:n]) - max(values[:n]) - gamma) for n in range(1, len(values) + 1)) < 1e-9
    )  # a rounding tie with the bound
    taken = [h for h, is_chosen in zip(entropies, chosen[0].tolist(), strict=True) if is_chosen]
    assert sorted(taken) == values[: len(taken)]


def test_random_is_keyed_and_not_by_row() -> None:
    length = 64
    base = places(choose(Random(8), view_of([0.5] * length)))
    assert base == places(choose(Random(8), view_of([0.1] * length)))
    assert base != places(choose(Random(8), view_of([0.5] * length, seed=1)))
    assert base != places(choose(Random(8), view_of([0.5] * length, step=2)))
    assert base != places(choose(Random(8), view_of([0.5] * length, start=101)))


def test_left_to_right() -> None:
    view = view_of([0.1, 0.2, 0.9, 0.9], is_open=[False, True, False, True])
    assert places(choose(LeftToRight(), view)) == [1]
    assert places(choose(LeftToRight(2), view)) == [1, 3]


def test_factor_takes_the_greatest_number_that_satisfies_it() -> None:
    # (n + 1)(1 - c): 2 * 0.1, 3 * 0.2, 4 * 0.3, 5 * 0.4 along the order.
    view = view_of([0.7, 0.9, 0.6, 0.8])
    assert [len(places(choose(Factor(f), view))) for f in (0.1, 0.21, 0.61, 1.21, 2.1)] == [1, 1, 2, 3, 4]
    assert places(choose(Factor(0.61), view)) == [1, 3]
    closed = view_of([0.7, 0.9, 0.6, 0.8], is_open=[True, False, True, True])
    assert places(choose(Factor(0.91), closed)) == [0, 3]


def test_klass_wants_confidence_and_a_law_that_rests() -> None:
    confident = [0.95, 0.95, 0.5, 0.95]
    changes = [[0.001, 0.009], [0.001, 0.011], [0.0, 0.0], [0.001, torch.inf]]
    view = view_of(confident, changes=changes)
    assert places(Klass(0.9, 0.01, 2).select(view)) == [0]
    assert places(Klass(0.9, 0.01, 1).select(view)) == [0, 1, 3]
    assert places(choose(Klass(0.99), view)) == [0]  # progress, by confidence


def spaced_batches(rule: Rule, length: int, fixed: set[int] | None = None) -> list[list[int]]:
    is_open, batches = [place not in (fixed or set()) for place in range(length)], []
    while any(is_open):
        batches.append(places(choose(rule, view_of([0.5] * length, is_open=is_open))))
        is_open = [usable and place not in batches[-1] for place, usable in enumerate(is_open)]
    return batches


def test_spaced_halves_the_canvas_again_and_again() -> None:
    assert spaced_batches(Spaced(), 8) == [[0], [4], [2, 6], [1, 3, 5, 7]]
    assert spaced_batches(Spaced(), 1) == [[0]]
    assert [len(batch) for batch in spaced_batches(Spaced(), 64)] == [1, 1, 2, 4, 8, 16, 32]
    assert 16 <= len(spaced_batches(Spaced(1.3), 512)) <= 28


@given(st.integers(1, 100), st.sets(st.integers(0, 99)))
def test_no_two_neighbours_of_a_spaced_batch_touch(length: int, fixed: set[int]) -> None:
    """Between two positions of a batch lies one that is decided, whatever was decided before."""
    decided = {place for place in fixed if place < length}
    for batch in spaced_batches(Spaced(), length, fixed):
        for left, right in itertools.pairwise(batch):
            assert any(left < place < right for place in decided)
        decided |= set(batch)


def test_a_budget_is_filled_in_the_rules_own_order() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert places(choose(LeftToRight(), view_of(values, steps_left=2))) == [0, 1, 2]
    assert places(choose(Threshold(2.0), view_of(values, steps_left=2))) == [2, 3, 4]
    assert places(choose(TopK(), view_of(values, steps_left=1))) == [0, 1, 2, 3, 4]
    assert places(choose(TopK(), view_of(values, steps_left=9))) == [4]


@given(
    st.sampled_from(OURS),
    st.integers(1, 12),
    st.integers(1, 15),
    st.integers(0, 2**32),
)
def test_a_budget_is_kept_evenly(rule: Rule, length: int, num_steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    is_open, steps = torch.ones(1, length, dtype=torch.bool), 0
    while is_open.any():
        confidence, entropy, margin = torch.rand(3, 1, length, generator=generator)
        view = View(
            is_open,
            confidence,
            entropy,
            margin,
            torch.arange(length)[None],
            (seed,),
            (steps,),
            (num_steps - steps,),
            torch.rand(1, length, rule.memory, generator=generator) / 50,
        )
        chosen = choose(rule, view)
        assert int(chosen.sum()) >= -(-int(is_open.sum()) // (num_steps - steps))
        assert not (chosen & ~is_open).any()
        is_open, steps = is_open & ~chosen, steps + 1
    assert steps <= num_steps


@given(
    st.lists(st.sampled_from([0.0, 1.0, -torch.inf]), min_size=1, max_size=6), st.integers(0, 7), st.data()
)
def test_leading(priority: list[float], count: int, data: st.DataObject) -> None:
    eligible = data.draw(st.lists(st.booleans(), min_size=len(priority), max_size=len(priority)))
    best = sorted((i for i, usable in enumerate(eligible) if usable), key=lambda i: (-priority[i], i))[:count]
    found = leading(torch.tensor([priority]), torch.tensor([eligible]), torch.tensor([count]))
    assert places(found) == sorted(best)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("threshold:0.7", Threshold(0.7)),
        ("threshold", Threshold(0.9)),
        ("top-k:2", TopK(2)),
        ("entropy-bound:0.1", EntropyBound(0.1)),
        ("margin:3", Margin(3)),
        ("random:1", Random(1)),
        ("left-to-right:1", LeftToRight(1)),
        ("factor:0.5", Factor(0.5)),
        ("klass", Klass(0.9, 0.01, 2)),
        ("klass:0.8,0.1,3", Klass(0.8, 0.1, 3)),
        ("spaced:1.5", Spaced(1.5)),
    ],
)
def test_parse(text: str, rule: Rule) -> None:
    assert RULES.parse(text) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treshold:0.9", "did you mean 'threshold'?"),
        ("zzz", "choose from entropy-bound, factor, klass"),
        ("threshold:high", "tau='high' is not a number"),
        ("threshold:", "tau='' is not a number"),
        ("threshold:nan", "tau=nan must be 0 or more and finite"),
        ("threshold:0.9,2", "takes at most 1 number(s), 2 were given"),
        ("entropy-bound:-1", "gamma=-1.0 must be 0 or more and finite"),
        ("top-k:0", "k=0 must be a whole number of at least 1"),
        ("margin:0.5", "k='0.5' is not a whole number"),
        ("klass:0.9,0.01,0", "n=0 must be a whole number of at least 1"),
        ("klass:0.9,-1", "bound=-1.0 must be 0 or more and finite"),
        ("factor:inf", "factor=inf must be 0 or more and finite"),
        ("spaced:1", "growth=1.0 must be above 1 and finite"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        RULES.parse(text)


def test_every_registered_rule_has_defaults() -> None:
    names = RULES.names()
    assert {"threshold", "top-k", "entropy-bound", "margin", "random", "left-to-right"} <= set(names)
    assert {"factor", "klass", "spaced"} <= set(names)
    for name in names:
        assert isinstance(RULES.parse(name), Rule)


@dataclass(frozen=True)
class Faulty(Rule):
    """A rule with one chosen fault."""

    fault: str

    def priority(self, view: View) -> Tensor:
        return view.open if self.fault == "boolean priority" else view.confidence

    def select(self, view: View) -> Tensor:
        none = torch.zeros_like(view.open)
        if self.fault == "shape":
            return none[:, :1]
        if self.fault == "dtype":
            return view.confidence
        if self.fault == "writes":
            view.open[:] = False
        if self.fault == "unsteady":
            return torch.rand(view.open.shape, generator=_UNSTEADY) < 0.5
        if self.fault == "rows":
            return view.confidence >= view.confidence.max()
        return none


_UNSTEADY = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("fault", ["shape", "dtype", "writes", "unsteady", "rows", "boolean priority"])
def test_the_check_finds_faults(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_rule(Faulty(fault))


def test_a_rule_that_never_selects_still_passes() -> None:
    check_rule(Faulty("none"))


def test_a_malformed_selection_is_an_error_in_the_decoder_too() -> None:
    for fault in ("shape", "dtype"):
        with pytest.raises(TypeError, match=r"must be torch\.bool of shape"):
            choose(Faulty(fault), view_of([0.5, 0.6]))


def test_rows_of_a_batch_keep_their_own_budgets() -> None:
    budgets = list(itertools.product([1, 2, None], repeat=2))
    rows = [view_of([0.1, 0.2, 0.3, 0.4], steps_left=left) for left in (1, 2, None)]
    alone = {view.steps_left[0]: choose(TopK(1), view) for view in rows}
    for pair in budgets:
        base = rows[0]
        both = View(
            base.open.repeat(2, 1),
            base.confidence.repeat(2, 1),
            base.entropy.repeat(2, 1),
            base.margin.repeat(2, 1),
            base.positions.repeat(2, 1),
            (0, 0),
            (1, 1),
            pair,
            base.changes.repeat(2, 1, 1),
        )
        assert torch.equal(choose(TopK(1), both), torch.cat([alone[left] for left in pair]))
