"""Likelihoods against enumeration: bounds are unbiased, exact ones are exact, and DUEL is a law."""

import itertools
import math
import re
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
from unmask.diffusion import (
    SCHEDULES,
    ExactCount,
    Hybrid,
    Independent,
    LowDiscrepancy,
    Masked,
    Process,
    TimeSampling,
    Uniform,
)
from unmask.diffusion.markov import MarkovChain
from unmask.diffusion.orders import bisection
from unmask.errors import UsageError
from unmask.evaluation.likelihood import (
    BlockDenoiser,
    Estimate,
    autoregressive_nll,
    bits_per_byte,
    block_bound,
    bound,
    duel_nll,
)

LINEAR = SCHEDULES.parse("linear")
SIZE, LENGTH = 2, 3
TABLE = Table.random(SIZE, LENGTH)
MASKED, UNIFORM = Masked(SIZE, SIZE, LINEAR), Uniform(SIZE, None, LINEAR)
HYBRID = Hybrid(SIZE, SIZE, SCHEDULES.parse("polynomial:2"), uniform_share=0.3)
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


def within(estimate: Estimate, truth: Tensor | float, errors: float = 3.5) -> bool:
    return bool(((estimate.mean - truth).abs() <= errors * estimate.standard_error + 1e-9).all())


def data_mean(estimate: Estimate) -> Estimate:
    """Weigh one estimate for each text by how probable the text is."""
    chances = TABLE.chances
    return Estimate(estimate.mean * chances, estimate.standard_error * chances, estimate.num_samples).sum()


def row_bounds(table: Table, process: Process) -> Tensor:
    """Return the bound of every text, by quadrature over time and a sum over all noisy sequences: (V^L,)."""
    certain = torch.eye(len(table.sequences), dtype=torch.float64)
    texts = [Table(table.vocab_size, table.length, law) for law in certain]
    return torch.tensor([text.bound(process, table.exact(process)) for text in texts], dtype=torch.float64)


@pytest.mark.parametrize("process", [MASKED, UNIFORM, HYBRID], ids=repr)
def test_the_bound_is_unbiased_for_every_text(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    found = bound(denoiser_of(TABLE, process), TABLE.sequences, process, generator, num_samples=600)
    truth = row_bounds(TABLE, process)
    assert found.num_samples == 600
    assert within(found, truth)
    assert data_mean(found).standard_error < 0.1
    assert float(TABLE.chances @ truth) == pytest.approx(TABLE.entropy, abs=1e-4)


def test_a_schedule_that_keeps_some_tokens_pays_for_its_prior() -> None:
    process = Uniform(SIZE, None, SCHEDULES.parse("log-linear:0.4"))
    generator = torch.Generator().manual_seed(9)
    found = data_mean(
        bound(denoiser_of(TABLE, process), TABLE.sequences, process, generator, num_samples=3000)
    )
    assert within(found, float(TABLE.chances @ row_bounds(TABLE, process)))
    assert float(process.prior_nll(TABLE.sequences[:1]).sum()) > 5 * found.standard_error


@pytest.mark.parametrize("times", [ExactCount(), LowDiscrepancy(), Independent()], ids=repr)
def test_every_time_sampling_estimates_the_same_bound(times: TimeSampling) -> None:
    """Exact counts leave the schedule out, and with it most of the noise."""
    process = Masked(SIZE, SIZE, SCHEDULES.parse("cosine"))
    generator = torch.Generator().manual_seed(1)
    rows = TABLE.sequences.repeat(40, 1)
    found = bound(denoiser_of(TABLE, process), rows, process, generator, num_samples=12, times=times)
    means = found.mean.view(40, -1)
    spread = means.std(0) / math.sqrt(40)
    assert ((means.mean(0) - row_bounds(TABLE, MASKED)).abs() < 4 * spread + 1e-9).all()
    # What is reported is at least what is there: strata make the means better than independent samples would be.
    assert (spread * math.sqrt(40) < 1.3 * found.standard_error.view(40, -1).square().mean(0).sqrt()).all()


def test_exact_counts_have_less_variance() -> None:
    generator = torch.Generator().manual_seed(2)
    found = {
        times: bound(
            denoiser_of(TABLE, MASKED), TABLE.sequences, MASKED, generator, num_samples=400, times=times
        )
        for times in (ExactCount(), Independent())
    }
    exact, independent = (float(one.standard_error.square().sum()) for one in found.values())
    assert exact < 0.7 * independent


def test_the_bound_of_some_tokens_given_the_others() -> None:
    """Only the scored tokens are noised: the mean over texts is their conditional entropy."""
    scored = torch.tensor([False, True, True]).expand(len(TABLE.sequences), -1)
    generator = torch.Generator().manual_seed(3)
    found = bound(
        denoiser_of(TABLE, MASKED), TABLE.sequences, MASKED, generator, num_samples=2000, scored=scored
    )
    first = TABLE.chances.view(SIZE, -1).sum(-1)
    conditional = TABLE.entropy - float(torch.special.entr(first).sum())
    mean = data_mean(found)
    assert within(mean, conditional)


def block_denoiser(table: Table, process: Process) -> BlockDenoiser:
    """Return exact laws of blocks given the clean tokens before them, from the table's own blocks."""

    def denoise(clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int]) -> Tensor:
        logits = torch.zeros(*noisy.shape, table.vocab_size, dtype=torch.float64)
        for start, stop in itertools.pairwise([*starts, table.length]):
            law = table.chances.view(table.vocab_size**start, table.vocab_size ** (stop - start), -1).sum(-1)
            place = (clean[:, :start] * table.vocab_size ** torch.arange(start - 1, -1, -1)).sum(-1)
            for prefix, chances in enumerate(law / law.sum(-1, keepdim=True)):
                rows = place == prefix
                one = denoiser_of(Table(table.vocab_size, stop - start, chances), process)
                if rows.any():
                    logits[rows, start:stop] = one(noisy[rows, start:stop], time[rows, start : start + 1])
        return logits

    return denoise


def next_token_logits(table: Table, tokens: Tensor) -> Tensor:
    blocks = block_denoiser(table, MASKED)
    masks = torch.full_like(tokens, SIZE)
    return blocks(tokens, masks, torch.ones(tokens.shape), range(table.length))


def test_the_autoregressive_likelihood_is_the_tables() -> None:
    nats = autoregressive_nll(next_token_logits(TABLE, TABLE.sequences), TABLE.sequences)
    torch.testing.assert_close(nats, -TABLE.chances.log())
    scored = torch.tensor([False, True, True]).expand_as(TABLE.sequences)
    some = autoregressive_nll(next_token_logits(TABLE, TABLE.sequences), TABLE.sequences, scored=scored)
    first = TABLE.chances.view(SIZE, -1).sum(-1).repeat_interleave(SIZE**2)
    torch.testing.assert_close(some, -(TABLE.chances / first).log())


def test_masked_blocks_of_one_token_are_the_autoregressive_likelihood() -> None:
    generator = torch.Generator().manual_seed(4)
    found = block_bound(block_denoiser(TABLE, MASKED), TABLE.sequences, MASKED, 1, generator, num_samples=3)
    torch.testing.assert_close(found.mean, -TABLE.chances.log(), atol=1e-12, rtol=0)
    assert float(found.standard_error.max()) < 1e-12


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=repr)
@pytest.mark.parametrize("block_length", [1, 2, 3, 9])
def test_block_bounds_of_the_exact_denoiser_are_the_entropy(process: Process, block_length: int) -> None:
    generator = torch.Generator().manual_seed(5)
    found = block_bound(
        block_denoiser(TABLE, process), TABLE.sequences, process, block_length, generator, num_samples=300
    )
    mean = data_mean(found)
    assert within(mean, TABLE.entropy)


def test_block_bounds_fall_from_the_whole_to_the_autoregressive_one() -> None:
    """A denoiser that knows the text before a block but nothing inside it pays for what is together in a block."""
    exact = block_denoiser(TABLE, MASKED)

    def blind(clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int]) -> Tensor:
        return exact(clean, torch.full_like(noisy, SIZE), time, starts)

    generator = torch.Generator().manual_seed(6)
    costs = []
    for block_length in (1, 2, 3):
        found = block_bound(blind, TABLE.sequences, MASKED, block_length, generator, num_samples=400)
        costs.append(data_mean(found))
    assert within(costs[0], TABLE.entropy)
    assert costs[1].mean - costs[0].mean > 4 * costs[1].standard_error
    assert costs[2].mean - costs[1].mean > 4 * (costs[1].standard_error + costs[2].standard_error)
    marginal = float(torch.special.entr(TABLE.marginals).sum())
    assert within(costs[2], marginal)


def test_tokens_before_the_first_block_are_given() -> None:
    generator = torch.Generator().manual_seed(7)
    seen: list[tuple[Tensor, Tensor, list[int]]] = []
    exact = block_denoiser(TABLE, MASKED)

    def watched(clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int]) -> Tensor:
        seen.append((noisy, time, list(starts)))
        return exact(clean, noisy, time, starts)

    found = block_bound(
        watched, TABLE.sequences, MASKED, 1, generator, num_samples=2, num_given=1, batch_rows=5
    )
    first = TABLE.chances.view(SIZE, -1).sum(-1).repeat_interleave(SIZE**2)
    torch.testing.assert_close(found.mean, -(TABLE.chances / first).log(), atol=1e-12, rtol=0)
    assert max(len(noisy) for noisy, _, _ in seen) <= 5
    assert all(starts == [1, 2] for _, _, starts in seen)
    assert torch.cat([time for _, time, _ in seen])[:, 0].eq(0).all()
    assert torch.cat([noisy for noisy, _, _ in seen])[:, 0].equal(TABLE.sequences[:, 0].repeat_interleave(2))


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


def test_bits_per_byte_and_units() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    estimate = Estimate(torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.4]), 5)
    total = estimate.sum()
    assert (float(total.mean), float(total.standard_error)) == pytest.approx((3.0, 0.5))
    per_token = total.scaled(1 / 10)
    assert (float(per_token.mean), float(per_token.standard_error)) == pytest.approx((0.3, 0.05))


def test_refusals() -> None:
    generator = torch.Generator()
    tokens = every_sequence(SIZE, LENGTH)

    def refused(message: str, **changes: object) -> None:
        arguments: dict[str, object] = {
            "process": MASKED,
            "generator": generator,
            "num_samples": 4,
            **changes,
        }
        with pytest.raises(UsageError, match=re.escape(message)):
            bound(denoiser_of(TABLE, MASKED), tokens, **arguments)  # type: ignore[arg-type]

    refused("num_samples=1: a standard error needs at least 2", num_samples=1)
    clipped = Uniform(SIZE, None, SCHEDULES.parse("clipped"))
    refused(
        "LowDiscrepancy() would miss a part of the bound: Clipped(low=0.3, high=0.8) leaves 0.3",
        process=clipped,
    )
    refused("exact-count counts masks", process=UNIFORM, times=ExactCount())
    with pytest.raises(UsageError, match="block_length=0 must be at least 1"):
        block_bound(block_denoiser(TABLE, MASKED), tokens, MASKED, 0, generator, num_samples=2)
