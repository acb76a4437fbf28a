"""Bounds against enumeration: unbiased, for every process and block length, with errors that are true."""

import itertools
import math
import re
from collections.abc import Sequence

import pytest
import torch
from enumerated import Table, every_sequence
from enumerated_sampler import denoiser_of
from torch import Tensor

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
from unmask.errors import UsageError
from unmask.evaluation.likelihood import (
    BlockDenoiser,
    Estimate,
    autoregressive_nll,
    bits_per_byte,
    block_bound,
    bound,
)

LINEAR = SCHEDULES.parse("linear")
SIZE, LENGTH = 2, 3
TABLE = Table.random(SIZE, LENGTH)
MASKED, UNIFORM = Masked(SIZE, SIZE, LINEAR), Uniform(SIZE, None, LINEAR)
HYBRID = Hybrid(SIZE, SIZE, SCHEDULES.parse("polynomial:2"), uniform_share=0.3)


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

    def denoise(clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int], wanted: Tensor) -> Tensor:
        logits = torch.zeros(*noisy.shape, table.vocab_size, dtype=torch.float64)
        for start, stop in itertools.pairwise([*starts, table.length]):
            law = table.chances.view(table.vocab_size**start, table.vocab_size ** (stop - start), -1).sum(-1)
            place = (clean[:, :start] * table.vocab_size ** torch.arange(start - 1, -1, -1)).sum(-1)
            for prefix, chances in enumerate(law / law.sum(-1, keepdim=True)):
                rows = place == prefix
                one = denoiser_of(Table(table.vocab_size, stop - start, chances), process)
                if rows.any():
                    logits[rows, start:stop] = one(noisy[rows, start:stop], time[rows, start : start + 1])
        return logits[wanted]

    return denoise


def next_token_logits(table: Table, tokens: Tensor) -> Tensor:
    blocks = block_denoiser(table, MASKED)
    masks = torch.full_like(tokens, SIZE)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    logits = blocks(tokens, masks, torch.ones(tokens.shape), range(table.length), everywhere)
    return logits.view(*tokens.shape, -1)


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

    def blind(clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int], wanted: Tensor) -> Tensor:
        return exact(clean, torch.full_like(noisy, SIZE), time, starts, wanted)

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

    def watched(clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int], wanted: Tensor) -> Tensor:
        assert wanted.equal(noisy == SIZE)  # what is not masked has no term
        seen.append((noisy, time, list(starts)))
        return exact(clean, noisy, time, starts, wanted)

    found = block_bound(
        watched, TABLE.sequences, MASKED, 1, generator, num_samples=2, num_given=1, batch_rows=5
    )
    first = TABLE.chances.view(SIZE, -1).sum(-1).repeat_interleave(SIZE**2)
    torch.testing.assert_close(found.mean, -(TABLE.chances / first).log(), atol=1e-12, rtol=0)
    assert max(len(noisy) for noisy, _, _ in seen) <= 5
    assert all(starts == [1, 2] for _, _, starts in seen)
    assert torch.cat([time for _, time, _ in seen])[:, 0].eq(0).all()
    assert torch.cat([noisy for noisy, _, _ in seen])[:, 0].equal(TABLE.sequences[:, 0].repeat_interleave(2))


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
