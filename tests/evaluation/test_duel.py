"""The exact likelihood of unmasking by a rule: a law for any denoiser, and what deciding together costs."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from enumerated import Table, every_sequence
from enumerated_sampler import denoiser_of
from torch import Tensor

from unmask.decoding.candidates import Shape
from unmask.decoding.decision import Drift
from unmask.decoding.rules import (
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
)
from unmask.decoding.samplers import Unmask
from unmask.decoding.sampling import sample
from unmask.diffusion import SCHEDULES, Masked, Uniform
from unmask.diffusion.markov import MarkovChain
from unmask.diffusion.orders import bisection
from unmask.errors import UsageError
from unmask.evaluation.likelihood import duel_nll

LINEAR = SCHEDULES.parse("linear")
SIZE, LENGTH = 2, 3
TABLE = Table.random(SIZE, LENGTH)
MASKED, UNIFORM = Masked(SIZE, SIZE, LINEAR), Uniform(SIZE, None, LINEAR)
RULES: list[Rule] = [
    Threshold(0.6),
    Threshold(0.0),
    TopK(2),
    EntropyBound(0.6),
    Factor(1.0),
    Margin(2),
    Klass(0.5, 0.05, 1),
    LeftToRight(2),
    Random(2),
    Spaced(),
]


def seeds_of(tokens: Tensor) -> list[int]:
    """One seed for all rows: what a rule that looks at noise selects is then one order for all texts."""
    return [11] * len(tokens)


def conditional_total_correlation(table: Table, process: Masked, rule: Rule) -> float:
    """Return E sum over rounds of TC(chosen | decided), straight from the table, following the rule on every path."""
    exact, total = denoiser_of(table, process), 0.0

    def subset(places: Sequence[int]) -> Tensor:
        """The law of some tokens, looked up for every text: (V^L,)."""
        powers = table.vocab_size ** torch.arange(len(places))
        key = (table.sequences[:, list(places)] * powers).sum(-1)
        mass = torch.zeros(table.vocab_size ** len(places), dtype=torch.float64)
        return mass.index_add(0, key, table.chances)[key]

    for row, text in enumerate(table.sequences):
        decided: list[int] = []
        step, drift = 0, Drift(rule.memory)
        while len(decided) < table.length:
            step += 1
            tokens = torch.full((1, table.length), table.vocab_size)
            tokens[0, decided] = text[decided]
            law = exact(tokens, torch.ones(1, 1)).softmax(-1)
            view = view_of(law, law.amax(-1), tokens == table.vocab_size, table.length - step + 1, step)
            chosen = choose(rule, replace(view, changes=drift.update(law.log())))[0].nonzero()[:, 0].tolist()
            given = subset(decided)[row]
            apart = sum((subset([*decided, place])[row] / given).log() for place in chosen)
            total += float(table.chances[row] * ((subset([*decided, *chosen])[row] / given).log() - apart))
            decided += chosen
    return total


def view_of(law: Tensor, confidence: Tensor, is_open: Tensor, steps_left: int, step: int) -> View:
    """Return the view of (1, L, K) laws as the decoder makes it."""
    first, second = law.topk(2, dim=-1).values.unbind(-1)
    return View(
        open=is_open,
        confidence=confidence,
        entropy=torch.special.entr(law).sum(-1),
        margin=first - second,
        positions=torch.arange(law.shape[1])[None],
        seeds=(11,),
        steps=(step,),
        steps_left=(steps_left,),
        changes=torch.zeros(1, law.shape[1], 0),
    )


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("size", [2, 3])
def test_the_divergence_of_a_rule_is_its_conditional_total_correlation(rule: Rule, size: int) -> None:
    table, process = Table.random(size, 3, seed=size), Masked(size, size, LINEAR)
    texts = table.sequences
    duel = duel_nll(denoiser_of(table, process), process, texts, rule, seeds=seeds_of(texts))
    divergence = float((table.chances * (table.chances.log() + duel.nats)).sum())
    assert divergence == pytest.approx(conditional_total_correlation(table, process, rule), abs=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_permutation_written_at_once_costs_its_closed_form(size: int) -> None:
    """Every token alone may be anything, so n! of n^n texts are right; one token a forward makes no mistake."""
    every = every_sequence(size, size)
    is_permutation = (every.sort(-1).values == torch.arange(size)).all(-1)
    texts, process = every[is_permutation], Masked(size, size, LINEAR)
    chances = is_permutation.double() / len(texts)
    denoiser, seeds = denoiser_of(Table(size, size, chances), process), seeds_of(texts)
    at_once = duel_nll(denoiser, process, texts, Threshold(0.0), seeds=seeds).nats
    closed = math.log(size**size / math.factorial(size))
    assert float(at_once.mean()) - math.log(len(texts)) == pytest.approx(closed)
    one_by_one = duel_nll(denoiser, process, texts, TopK(1), seeds=seeds).nats
    assert float(one_by_one.mean()) == pytest.approx(math.log(len(texts)))


def arbitrary_denoiser(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
    """Return the laws of no data at all, a random table over canvases: the worst that training can give."""
    generator = torch.Generator().manual_seed(8)
    table = 2 * torch.randn((SIZE + 1) ** LENGTH, LENGTH, SIZE, dtype=torch.float64, generator=generator)
    return table[(tokens * (SIZE + 1) ** torch.arange(LENGTH)).sum(-1)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("steps", [2, 3])
def test_duel_sums_to_one_for_any_denoiser(rule: Rule, steps: int) -> None:
    texts = TABLE.sequences
    duel = duel_nll(arbitrary_denoiser, MASKED, texts, rule, seeds=seeds_of(texts), steps=steps)
    assert float((-duel.nats).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert int(duel.num_forwards.max()) <= steps


def drawn_then_selected(rule: Rule) -> float:
    """Return the sum over all texts of the products that DUEL would give if the rule saw the drawn tokens."""
    total = 0.0
    for text in TABLE.sequences:
        tokens, chance, step = torch.full((1, LENGTH), SIZE), 1.0, 0
        while (is_open := tokens == SIZE).any():
            step += 1
            law = arbitrary_denoiser(tokens, torch.ones(1, 1)).softmax(-1)
            drawn = law[0, torch.arange(LENGTH), text][None]
            chosen = choose(rule, view_of(law, drawn, is_open, LENGTH - step + 1, step))
            chance *= float(drawn[chosen].prod())
            tokens = torch.where(chosen, text[None], tokens)
        total += chance
    return total


@pytest.mark.parametrize("rule", [Threshold(0.6), TopK(1), TopK(2), Factor(1.0)], ids=repr)
def test_duel_would_be_no_law_for_rules_that_see_the_drawn_tokens(rule: Rule) -> None:
    assert abs(drawn_then_selected(rule) - 1) > 0.02
    assert drawn_then_selected(LeftToRight()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rule", [Threshold(0.6), EntropyBound(0.6), Klass(0.5, 0.05, 1), Spaced()], ids=repr)
def test_duel_is_the_law_of_the_sampler(rule: Rule) -> None:
    rows, shape = 4000, Shape(temperature=0.8)
    denoiser = denoiser_of(TABLE, MASKED)
    blank = torch.zeros(rows, LENGTH, dtype=torch.int64)
    done = sample(
        denoiser, MASKED, blank, blank == 0, Unmask(rule, "highest"), steps=3, seeds=range(rows), shape=shape
    )
    duel = duel_nll(denoiser, MASKED, TABLE.sequences, rule, seeds=seeds_of(TABLE.sequences), shape=shape)
    law = (-duel.nats).exp()
    counts = torch.bincount((done.tokens * torch.tensor([4, 2, 1])).sum(-1), minlength=8).double()
    statistic = float(((counts - rows * law) ** 2 / (rows * law)).sum())
    assert statistic < 7 + 5 * math.sqrt(14)
    texts = (done.tokens[:200, None] == TABLE.sequences).all(-1).long().argmax(-1)
    assert done.num_forwards[:200].equal(duel.num_forwards[texts])


def test_duel_of_scored_tokens_and_of_a_budget() -> None:
    denoiser = denoiser_of(TABLE, MASKED)
    scored = torch.tensor([False, True, True]).expand_as(TABLE.sequences)
    seeds = seeds_of(TABLE.sequences)
    serial = duel_nll(denoiser, MASKED, TABLE.sequences, LeftToRight(), seeds=seeds)
    torch.testing.assert_close(serial.nats, -TABLE.chances.log())
    assert set(serial.num_forwards.tolist()) == {3}
    some = duel_nll(denoiser, MASKED, TABLE.sequences, LeftToRight(), seeds=seeds, scored=scored)
    first = TABLE.chances.view(SIZE, -1).sum(-1).repeat_interleave(SIZE**2)
    torch.testing.assert_close(some.nats, -(TABLE.chances / first).log())
    at_once = duel_nll(denoiser, MASKED, TABLE.sequences, LeftToRight(), seeds=seeds, steps=1)
    product = TABLE.marginals[torch.arange(LENGTH), TABLE.sequences].prod(-1)
    torch.testing.assert_close(at_once.nats, -product.log())
    assert set(at_once.num_forwards.tolist()) == {1}
    with pytest.raises(UsageError, match="does not fit the process Uniform"):
        duel_nll(denoiser_of(TABLE, UNIFORM), UNIFORM, TABLE.sequences, LeftToRight(), seeds=seeds)


def test_unmasking_a_markov_chain_costs_the_closed_form() -> None:
    """Rounds that halve the gaps cost nothing; runs of four from the left cost much more."""
    length, flip = 16, 0.1
    transition = torch.tensor([[1 - flip, flip], [flip, 1 - flip]], dtype=torch.float64)
    chain = MarkovChain.stationary(transition)
    texts = chain.sample(600, length, torch.Generator().manual_seed(1))
    denoiser, seeds = chain.denoiser(MASKED), seeds_of(texts)
    spaced = duel_nll(denoiser, MASKED, texts, Spaced(), seeds=seeds)
    torch.testing.assert_close(spaced.nats, -chain.log_prob(texts))
    assert set(spaced.num_forwards.tolist()) == {len(bisection(length))}
    runs = [list(range(start, start + 4)) for start in range(0, length, 4)]
    cost = duel_nll(denoiser, MASKED, texts, LeftToRight(4), seeds=seeds).nats + chain.log_prob(texts)
    error = float(cost.std() / math.sqrt(len(texts)))
    assert abs(float(cost.mean()) - chain.schedule_kl(runs)) < 4 * error
    assert chain.schedule_kl(runs) > 10 * error
