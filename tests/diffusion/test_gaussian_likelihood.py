"""Likelihoods under Gaussian noise against the probabilities of a table."""

import pytest
import torch
from enumerated import Table
from gaussian_toys import LINE, SQUARE, Alone, Exact, on_a_line, templates
from torch import Tensor

from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser, Reconsidered
from unmask.diffusion.gaussian_likelihood import bound_draws, flow_draws
from unmask.diffusion.gaussian_schedule import GumbelGamma, LinearGamma
from unmask.diffusion.markov import MarkovChain
from unmask.errors import UsageError
from unmask.evaluation.gaussian_likelihood import flow_likelihood, gaussian_bound

SCHEDULE = LinearGamma(-7.0, 9.0)
"""Of one text, unlike of all on average, the flow tells where it begins to first order in alpha: there 15 is high."""


def three_errors(draws: Tensor) -> float:
    return float(3 * draws.std() / len(draws) ** 0.5)


@pytest.mark.parametrize("schedule", [LinearGamma(-7, 15), GumbelGamma(-4.0, 1.3)], ids=repr)
def test_the_flow_of_the_exact_denoiser_gives_every_text_its_probability(
    schedule: LinearGamma | GumbelGamma,
) -> None:
    table = Table.random(3, 2)
    process = on_a_line(table, schedule)
    for index in (0, 4, int(table.chances.argmin())):
        x0 = table.sequences[index].expand(600, -1)
        draws = flow_draws(
            Exact(table, process), x0, process, torch.Generator().manual_seed(index), num_steps=32
        )
        truth = float(-table.chances[index].log())
        assert abs(float(draws.mean()) - truth) < three_errors(draws) + 1e-3
        assert three_errors(draws) < 0.05 * truth


def test_the_flow_of_templates_has_the_entropy_log_two() -> None:
    table = templates()
    process = Gaussian(SQUARE, SCHEDULE)
    x0 = table.sample(800, torch.Generator().manual_seed(0))
    draws = flow_draws(Exact(table, process), x0, process, torch.Generator().manual_seed(1), num_steps=24)
    assert abs(float(draws.mean()) - table.entropy) < three_errors(draws) + 1e-3
    assert three_errors(draws) < 0.12


def test_the_error_of_the_steps_falls_with_their_fourth_power() -> None:
    table = Table.random(3, 1)
    process = on_a_line(table, SCHEDULE)
    x0 = table.sample(500, torch.Generator().manual_seed(0))

    def draws(num_steps: int) -> Tensor:
        # Common noise, and of one dimension, in which the probe is exact: what differs is the steps.
        generator = torch.Generator().manual_seed(1)
        return flow_draws(Exact(table, process), x0, process, generator, num_steps=num_steps)

    fine = draws(96)
    coarse, middle, usual = (abs(float((draws(num_steps) - fine).mean())) for num_steps in (8, 16, 32))
    assert usual < 5e-4
    assert usual < middle / 8 < coarse / 32


def test_given_tokens_condition_the_flow() -> None:
    table = Table.random(3, 2)
    process = on_a_line(table, LinearGamma(-7, 15))
    law = table.chances.view(3, 3)[1]
    x0 = torch.tensor([1, 2]).expand(500, -1)
    scored = torch.tensor([False, True]).expand(500, -1)
    generator = torch.Generator().manual_seed(0)
    draws = flow_draws(Exact(table, process), x0, process, generator, num_steps=32, scored=scored)
    assert abs(float(draws.mean()) - float((law.sum() / law[2]).log())) < three_errors(draws) + 1e-3


def test_given_tokens_condition_the_bound() -> None:
    table = Table.random(3, 2)
    process = on_a_line(table, LinearGamma(-5, 7))
    law = table.chances.view(3, 3)[1] / table.chances.view(3, 3)[1].sum()
    scored = torch.tensor([False, True]).expand(4000, -1)
    generator, found, variance = torch.Generator().manual_seed(0), 0.0, 0.0
    for last, chance in enumerate(law.tolist()):  # it is the entropy on average, and no text's own
        x0 = torch.tensor([1, last]).expand(4000, -1)
        draws = bound_draws(Exact(table, process), x0, process, generator, scored=scored)
        found += chance * float(draws.mean())
        variance += (chance * three_errors(draws)) ** 2
    assert abs(found - float(torch.special.entr(law).sum())) < variance**0.5
    assert variance**0.5 < 0.2


def test_estimates_have_means_and_errors() -> None:
    table = Table.random(3, 2)
    process = on_a_line(table, LinearGamma(-5, 6))
    denoiser, tokens = Exact(table, process), table.sequences[[0, 5]]
    bound = gaussian_bound(
        denoiser, tokens, process, torch.Generator().manual_seed(0), num_samples=2000, batch_rows=500
    )
    flow = flow_likelihood(
        denoiser, tokens, process, torch.Generator().manual_seed(0), num_samples=200, num_steps=16
    )
    truth = -table.chances[[0, 5]].log()
    assert bound.mean.shape == flow.standard_error.shape == (2,)
    assert ((flow.mean - truth).abs() < 3 * flow.standard_error + 5e-3).all()
    assert (bound.mean > truth - 3 * bound.standard_error).all()
    alone = gaussian_bound(
        Alone(table, process), tokens, process, torch.Generator().manual_seed(0), num_samples=2000
    )
    assert float((table.chances[[0, 5]] * (alone.mean - bound.mean)).sum()) > 0


def test_a_belief_of_its_own_belongs_to_the_function_that_is_integrated() -> None:
    """A denoiser that is exact only once it has believed itself: a flow that took beliefs for constant would err."""
    table = Table.random(3, 1)
    process = on_a_line(table, LinearGamma(-7, 15))
    exact = Exact(table, process)

    def hesitant(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        # The evidence in two halves: one by itself, one by way of the belief.
        half = process.evidence(noisy, gamma.expand(noisy.shape[:-1])) / 2
        return half if belief is None else half + (belief + 1e-300).log() + table.marginals.log()

    z = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1)
    gamma = torch.zeros(9, 1, dtype=torch.float64)
    torch.testing.assert_close(Reconsidered(hesitant)(z, gamma).softmax(-1), exact(z, gamma).softmax(-1))
    x0 = table.sequences[2].expand(300, -1)

    def draws(denoiser: GaussianDenoiser) -> Tensor:
        return flow_draws(denoiser, x0, process, torch.Generator().manual_seed(0), num_steps=32)

    torch.testing.assert_close(draws(Reconsidered(hesitant)), draws(exact), rtol=1e-6, atol=1e-6)


def test_a_chain_of_sixteen_tokens_has_its_entropy() -> None:
    chain = MarkovChain.random(4, torch.Generator().manual_seed(0))
    process = Gaussian(SQUARE, LinearGamma(-5, 7))

    def denoiser(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        return chain.predict(process.evidence(noisy, gamma).softmax(-1), "posterior")

    x0 = chain.sample(5000, 16, torch.Generator().manual_seed(1))
    draws = bound_draws(denoiser, x0, process, torch.Generator().manual_seed(2))
    assert abs(float(draws.mean()) - chain.entropy(16)) < three_errors(draws)
    assert three_errors(draws) < 0.12 * chain.entropy(16)


def test_too_few_samples_or_steps_are_refused() -> None:
    process = Gaussian(LINE, SCHEDULE)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(UsageError, match="num_samples=1"):
        gaussian_bound(Alone(Table.random(3, 2), process), tokens, process, torch.Generator(), num_samples=1)
    with pytest.raises(UsageError, match="num_steps=0"):
        flow_likelihood(
            Alone(Table.random(3, 2), process),
            tokens,
            process,
            torch.Generator(),
            num_steps=0,
            num_samples=2,
        )
