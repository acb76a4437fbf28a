"""The bound against the entropy, every sum written out."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from enumerated import Table, every_sequence, prior_law, quadrature
from torch import Tensor

from unmask.diffusion import SCHEDULES, Hybrid, Masked, Process, Uniform, build_process
from unmask.diffusion.schedule import Clipped, Linear, LogLinear

WHOLE = ["linear", "cosine", "polynomial:2", "polynomial:0.5"]
"""Schedules from 1 to 0."""
PARTIAL = ["log-linear:0.2", "clipped:0.3,0.8"]
NOISE = ["masked", "uniform", "hybrid:0.2", "hybrid:0.5,1.7"]


def process_of(noise: str, vocab_size: int = 3, schedule: str = "linear") -> Process:
    return build_process(noise, vocab_size, vocab_size, SCHEDULES.parse(schedule))


@pytest.mark.parametrize("schedule", WHOLE)
@pytest.mark.parametrize("noise", NOISE)
def test_the_bound_of_the_exact_denoiser_is_the_entropy(noise: str, schedule: str) -> None:
    process, table = process_of(noise, schedule=schedule), Table.random(3, 3)
    assert table.bound(process, table.exact(process)) == pytest.approx(table.entropy, abs=2e-6)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("block_length", [1, 2, 3, 4])
def test_block_bounds_of_the_exact_denoiser_add_up_to_the_entropy(noise: str, block_length: int) -> None:
    process, table = process_of(noise, 2), Table.random(2, 4)
    parts = [
        chance * block.bound(process, block.exact(process)) for chance, block in table.blocks(block_length)
    ]
    assert sum(parts) == pytest.approx(table.entropy, abs=2e-6)


@pytest.mark.parametrize("block_length", [1, 2, 4])
def test_masked_block_bounds_hold_for_every_schedule(block_length: int) -> None:
    table = Table.random(2, 4, seed=1)
    for schedule in WHOLE:
        process = process_of("masked", 2, schedule)
        parts = [c * block.bound(process, block.exact(process)) for c, block in table.blocks(block_length)]
        assert sum(parts) == pytest.approx(table.entropy, abs=1e-9)


@pytest.mark.parametrize("noise", NOISE)
def test_a_denoiser_without_context_pays_the_sum_of_the_marginal_entropies(noise: str) -> None:
    process, table = process_of(noise), Table.random(3, 3)
    wanted = float(torch.special.entr(table.marginals).sum())
    assert wanted > table.entropy + 0.3
    assert table.bound(process, table.independent()) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("schedule", PARTIAL)
@pytest.mark.parametrize("noise", NOISE)
def test_an_incomplete_schedule_pays_for_both_ends_and_nothing_else(noise: str, schedule: str) -> None:
    """Bound = entropy + KL(q(z_1) || prior) + E KL(p(x | z_0) || product of its marginals)."""
    process, table = process_of(noise, schedule=schedule), Table.random(3, 3)
    noisy = every_sequence(process.num_states, table.length)
    end = table.joint(process, noisy, torch.ones(())).sum(-1)
    prior = prior_law(process, table.length)
    prior_gap = float((torch.special.xlogy(end, end) - torch.special.xlogy(end, prior)).sum())

    joint = table.joint(process, noisy, torch.zeros(()))
    posterior = table.predict(process, noisy, torch.zeros(()), "posterior")
    product = posterior[:, torch.arange(table.length), table.sequences].sum(-1)
    known = joint / joint.sum(-1, keepdim=True)
    start_gap = float((joint * (known.log() - product)).nansum())

    assert prior_gap > 1e-3
    found = table.bound(process, table.exact(process))
    assert found == pytest.approx(table.entropy + prior_gap + start_gap, abs=2e-6)


@pytest.mark.parametrize(("noise", "floor"), [("uniform", 1.0), ("hybrid:0.2", 1.0)])
def test_the_posterior_in_the_place_of_the_leave_one_out_law_is_wrong_by_far(
    noise: str, floor: float
) -> None:
    process, table = process_of(noise), Table.random(3, 3)
    posterior = table.exact(process, "posterior")
    wrong = table.bound(process, posterior)
    assert wrong > table.entropy + floor
    if noise == "uniform":
        page = (Path(__file__).parents[2] / "docs" / "diffusion.md").read_text()
        assert f"{table.entropy:.3f}" in page
        assert f"{wrong:.3f}" in page

    def converted(noisy: Tensor, t: Tensor) -> Tensor:
        law = posterior(noisy, t)
        xt = noisy.expand(len(t), -1, -1)
        return process.convert(law, xt, t[:, None, None], source="posterior", target="leave_one_out")

    # Where t leaves no digit of the other tokens in the posterior, the conversion cannot recover them.
    nodes, weights = quadrature()
    inside = (nodes > 1e-6) & (nodes < 1 - 1e-6)
    exact, found = (table.integrand(process, one, nodes[inside]) for one in (table.exact(process), converted))
    assert torch.allclose(weights[inside] * found, weights[inside] * exact, atol=1e-8, rtol=0)


@pytest.mark.parametrize("schedule", WHOLE)
def test_hybrid_noise_without_uniform_tokens_is_masked_noise(schedule: str) -> None:
    table = Table.random(3, 2)
    hybrid, masked = process_of("hybrid:0", schedule=schedule), process_of("masked", schedule=schedule)
    for t in (0.1, 0.5, 0.9):
        time = torch.tensor(t, dtype=torch.float64)
        states, clean = torch.arange(4), torch.arange(3)
        assert torch.allclose(hybrid.marginal(clean, time), masked.marginal(clean, time))
        assert torch.allclose(
            hybrid.transition(states, time / 2, time), masked.transition(states, time / 2, time)
        )
        found, wanted = (
            table.integrand(one, table.exact(one, "leave_one_out"), time) for one in (hybrid, masked)
        )
        assert float(found) == pytest.approx(float(wanted), rel=1e-12)


def test_hybrid_noise_without_masks_cannot_be_had() -> None:
    """Its limit is not uniform noise: the mask is where it ends."""
    levels = Hybrid(3, 3, Linear(), 0.99).levels(torch.tensor([0.0, 0.5, 1.0]).double())
    assert levels.mask.tolist() == pytest.approx([0.0, 0.005, 1.0])
    assert levels.uniform.tolist() == pytest.approx([0.0, 0.99, 0.0])


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_masked_score_entropy_is_the_masked_integrand_sample_by_sample(t: float) -> None:
    """SEDD (arXiv 2310.16834): sum over y != z of rate (score - r log score + r (log r - 1))."""
    generator = torch.Generator().manual_seed(0)
    process = Masked(4, 4, Linear())
    prediction = torch.randn(5, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    x0, xt = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([4, 4, 4, 4, 1])
    alpha = 1 - t
    rate = 1 / alpha  # of masking, -alpha' / alpha
    wanted = []
    for law, true, state in zip(prediction.exp(), x0.tolist(), xt.tolist(), strict=True):
        total = 0.0
        for y in range(4) if state == 4 else ():
            score, ratio = float(law[y]) * alpha / (1 - alpha), (y == true) * alpha / (1 - alpha)
            surplus = ratio * (math.log(ratio) - 1) if ratio else 0.0
            total += rate * (score - ratio * math.log(score) + surplus)
        wanted.append(total)
    found = process.nll(prediction, x0, xt, torch.tensor(t, dtype=torch.float64))
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("process", [Uniform(4, None, Linear()), Hybrid(4, 4, Linear(), 0.3)], ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_integrand_is_the_divergence_of_jump_rates(process: Process, t: float) -> None:
    """Sum over y != z of R(y -> z) (rhat - r + r log(r / rhat)); the rates by a difference of kernels."""
    generator = torch.Generator().manual_seed(0)
    size, step = process.num_states, 1e-6
    time = torch.tensor(t, dtype=torch.float64)
    rates = process.transition(torch.arange(size), time - step / 2, time + step / 2) / step
    law = process.marginal(torch.arange(4), time)
    prediction = torch.randn(4 * size, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    pairs = torch.tensor(list(itertools.product(range(4), range(size))))
    wanted = []
    for (x, z), guess in zip(pairs.tolist(), prediction.exp(), strict=True):
        q, qhat = law[x], guess @ law
        r, rhat = q / q[z], qhat / qhat[z]
        terms = rates[:, z] * (rhat - r + r * (r / rhat).log())
        wanted.append(float(terms.sum() - terms[z]))
    found = process.nll(prediction, pairs[:, 0], pairs[:, 1], time)
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_hybrid_weights_are_the_published_ones(t: float) -> None:
    """GIDD (arXiv 2503.04482): the loss against its formula with c_t = B sqrt(t (1 - t)), linear time."""
    size, share = 4, 0.2
    process = Hybrid(size, size, Linear(), share)
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(3, size, generator=generator, dtype=torch.float64).log_softmax(-1)
    x0, xt = torch.tensor([0, 0, 0]), torch.tensor([size, 0, 2])
    factor = 2 * share / (1 - share)
    c = factor * math.sqrt(t * (1 - t))
    slope = factor * (1 - 2 * t) / (2 * math.sqrt(t * (1 - t)))
    weights = [
        1 / (t * (1 - t)),
        (c + (1 - t) * slope) / size / ((1 - t) * (1 - t + c / size)),
        (c + (1 - t) * slope) / ((1 - t) * c),
    ]
    law = process.marginal(torch.arange(size), torch.tensor(t))
    q = law[0]
    wanted = []
    for weight, guess, z in zip(weights, prediction.exp(), xt.tolist(), strict=True):
        qhat = guess @ law
        rho = float(q[z] / qhat[z])
        wanted.append(weight * (float((q * (q / qhat).log()).sum()) + rho - math.log(rho) - 1))
    assert process.nll(prediction, x0, xt, torch.tensor(t)).tolist() == pytest.approx(wanted, rel=1e-6)


def test_counting_masks_gives_the_integral_over_time() -> None:
    """E over k ~ U{1..L} and masks of size k of (L / k) cross-entropy, for a denoiser that is not exact."""
    table, length = Table.random(3, 3), 3
    process = Masked(3, 3, Clipped(0.0, 1.0))
    half = torch.tensor(0.5, dtype=torch.float64)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        exact = table.predict(process, noisy, half, "posterior").exp()  # masked conditionals know no time
        return (0.7 * exact + 0.1).log()

    total = 0.0
    for size in range(1, length + 1):
        subsets = list(itertools.combinations(range(length), size))
        for hidden in subsets:
            noisy = table.sequences.clone()
            noisy[:, hidden] = process.vocab_size
            true = predict(noisy, half).gather(-1, table.sequences[..., None])[..., 0]
            nats = -(table.chances * true[:, hidden].sum(-1)).sum()
            total += float(nats) * length / size / len(subsets) / length
    assert table.bound(process, predict) == pytest.approx(total, rel=1e-9)


def test_the_prior_term_of_a_schedule_that_keeps_some_tokens() -> None:
    kept = 0.05
    process = Masked(3, 3, LogLinear(kept))
    assert process.prior_nll(torch.tensor([0, 2])).tolist() == pytest.approx([kept * math.log(3)] * 2)
