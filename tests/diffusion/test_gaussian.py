"""The Gaussian process in closed form, and what it says about entropy."""

import math
from itertools import pairwise

import pytest
import torch
from enumerated import Table
from gaussian_toys import LINE, SQUARE, WIDE, Alone, Exact, Grid, on_a_line
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from unmask.diffusion.gaussian import Gaussian, Informed, log_alpha, log_sigma
from unmask.diffusion.gaussian_schedule import GumbelGamma, LearnedGamma, LinearGamma
from unmask.errors import UsageError

GAMMAS = [-12.0, -3.0, 0.0, 2.5, 9.0]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def levels(gamma: float) -> tuple[float, float]:
    """Return alpha and sigma."""
    return (1 + math.exp(gamma)) ** -0.5, (1 + math.exp(-gamma)) ** -0.5


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gamma_is_minus_the_log_signal_to_noise_ratio(gamma: float) -> None:
    alpha, sigma = log_alpha(scalar(gamma)).exp(), log_sigma(scalar(gamma)).exp()
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-12)
    assert float(-(alpha**2 / sigma**2).log()) == pytest.approx(gamma)


def test_noise_has_the_mean_and_the_spread_it_says() -> None:
    process = Gaussian(LINE, WIDE)
    z = process.corrupt(torch.full((40_000,), 2), scalar(0.5), torch.Generator().manual_seed(0))[:, 0]
    alpha, sigma = levels(0.5)
    assert float(z.mean()) == pytest.approx(alpha * 1.25, abs=4 * sigma / 200)
    assert float(z.std()) == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_evidence_is_the_likelihood_of_each_token(gamma: float) -> None:
    process, z = Gaussian(torch.cat([SQUARE, 2 * SQUARE[:1]]), WIDE), normal(6, 2)
    alpha, sigma = levels(gamma)
    truth = Normal(alpha * process.embeddings, sigma).log_prob(z[:, None]).sum(-1)
    found = process.evidence(z, scalar(gamma).expand(6))
    torch.testing.assert_close(found.log_softmax(-1), truth.log_softmax(-1))


def test_every_token_may_have_its_own_noise() -> None:
    process, z, gammas = Gaussian(SQUARE, WIDE), normal(5, 2), torch.tensor(GAMMAS, dtype=torch.float64)
    whole = process.evidence(z, gammas)
    for place, gamma in enumerate(GAMMAS):
        torch.testing.assert_close(whole[place], process.evidence(z[place], scalar(gamma)))


def test_prior_nll_is_the_divergence_from_normal_noise() -> None:
    process = Gaussian(torch.cat([SQUARE, 3 * SQUARE]), LinearGamma(-5, 1.5))
    alpha, sigma = levels(1.5)
    truth = kl_divergence(Normal(alpha * process.embeddings, sigma), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(process.prior_nll(torch.arange(8)), truth)


@pytest.mark.parametrize("gamma", [5.0, 0.0, -3.0])
@pytest.mark.parametrize("target", [7.0, 0.0, -4.0, -20.0])
def test_a_flow_step_with_a_constant_mean_is_exact_over_any_distance(gamma: float, target: float) -> None:
    process, tokens, noise = Gaussian(SQUARE, WIDE), torch.arange(4), normal(4, 2)
    start, end = (process.noise(tokens, scalar(level), noise) for level in (gamma, target))
    found = process.flow(start, process.embed(tokens), scalar(gamma), scalar(target))
    torch.testing.assert_close(found, end)


@pytest.mark.parametrize(("gamma", "target"), [(6.0, -6.0), (1.0, 0.9), (0.0, 5.0), (-3.0, -3.0001)])
def test_lean_is_exact_for_a_mean_that_is_linear_in_gamma(gamma: float, target: float) -> None:
    process, first, last, z = Gaussian(SQUARE, WIDE), normal(2), normal(2, seed=1), normal(2, seed=2)
    start, end = scalar(gamma), scalar(target)
    found = process.flow(z, torch.lerp(first, last, process.lean(start, end)), start, end)
    grid = torch.linspace(gamma, target, 1001, dtype=torch.float64)
    for here, there in pairwise(grid):
        share = ((here + there) / 2 - start) / (end - start)
        z = process.flow(z, torch.lerp(first, last, share), here, there)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-4)


def test_the_flow_of_normal_data_is_an_affine_map_and_a_semigroup() -> None:
    """Of N(mu, s^2) the flow keeps each number's place: so many standard deviations from the mean at every level."""
    process, mu, s = Gaussian(LINE, WIDE), 0.7, 0.4

    def moments(gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = log_alpha(gamma).exp(), log_sigma(gamma).exp()
        return alpha, alpha * mu, (alpha**2 * s**2 + sigma**2).sqrt()

    def closed(z: Tensor, gamma: Tensor, target: Tensor) -> Tensor:
        (_, mean, spread), (_, there, wide) = moments(gamma), moments(target)
        return there + wide * (z - mean) / spread

    def followed(z: Tensor, gamma: Tensor, target: Tensor) -> Tensor:
        for here, there in pairwise(torch.linspace(float(gamma), float(target), 2001, dtype=torch.float64)):
            alpha, mean, spread = moments(here)
            z = process.flow(z, mu + alpha * s**2 / spread**2 * (z - mean), here, there)
        return z

    z, high, middle, low = normal(9, 1), scalar(5.0), scalar(0.5), scalar(-6.0)
    torch.testing.assert_close(followed(z, high, low), closed(z, high, low), rtol=0, atol=3e-3)
    torch.testing.assert_close(closed(closed(z, high, middle), middle, low), closed(z, high, low))
    by_parts = followed(followed(z, high, middle), middle, low)
    torch.testing.assert_close(by_parts, followed(z, high, low), rtol=0, atol=3e-3)


@pytest.mark.parametrize(("low", "high"), [(-6.0, 5.0), (0.0, 0.1), (-1.0, 30.0)])
def test_steps_down_and_up_share_one_joint_law(low: float, high: float) -> None:
    # Both are affine in z and the noise: their coefficients are seen by putting in zeros and ones.
    process, zero, one = Gaussian(SQUARE, WIDE), torch.zeros(1, dtype=torch.float64), normal(1) * 0 + 1
    early, late = scalar(low), scalar(high)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = levels(low), levels(high)
    keep = float(process.ancestral(one, zero, late, early, zero))
    mean = float(process.ancestral(zero, one, late, early, zero))
    spread = float(process.ancestral(zero, zero, late, early, one))
    assert keep * alpha_t + mean == pytest.approx(alpha_s)
    assert (keep * sigma_t) ** 2 + spread**2 == pytest.approx(sigma_s**2)
    up, fresh = (
        float(process.renoise(*pair[:1], early, late, pair[1])) for pair in ((one, zero), (zero, one))
    )
    assert up * alpha_s == pytest.approx(alpha_t)
    assert (up * sigma_s) ** 2 + fresh**2 == pytest.approx(sigma_t**2)
    assert up * sigma_s**2 == pytest.approx(keep * sigma_t**2)  # the covariance of both levels


def test_the_mean_square_error_of_a_sign_integrates_to_log_two() -> None:
    """Guo, Shamai and Verdu 2005, with the posterior mean tanh written out; and the process agrees with it."""
    process = Gaussian(torch.tensor([[1.0], [-1.0]], dtype=torch.float64), WIDE)
    gammas = torch.linspace(-9, 11, 101, dtype=torch.float64)
    noise = torch.linspace(-8, 8, 401, dtype=torch.float64)
    weights = (-noise.square() / 2).exp()
    ratio = (-gammas).exp()[:, None]
    errors = (1 - (ratio + ratio.sqrt() * noise).tanh()).square() @ (weights / weights.sum())
    half = ratio[:, 0] * errors / 2
    assert float(torch.trapezoid(half, gammas)) == pytest.approx(math.log(2), abs=1e-4)
    x0 = torch.zeros(101, 401, dtype=torch.int64)
    wide = gammas[:, None].expand(x0.shape)
    z = process.noise(x0, wide, noise[:, None].expand(101, 401, 1))
    found = process.integrand(process.evidence(z, wide), x0, wide) @ (weights / weights.sum())
    torch.testing.assert_close(found, half, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("schedule", [WIDE, GumbelGamma(-4.5, 1.2), LearnedGamma(-9, 11, 7)], ids=repr)
def test_the_bound_of_the_exact_denoiser_is_the_entropy_whatever_the_schedule(
    schedule: LinearGamma | GumbelGamma | LearnedGamma,
) -> None:
    if isinstance(schedule, LearnedGamma):
        schedule.logits.data = torch.randn(7, generator=torch.Generator().manual_seed(0))
    table = Table.random(3, 1)
    process = on_a_line(table, schedule)
    assert Grid(process, table).bound(Exact(table, process)) == pytest.approx(table.entropy, abs=3e-4)


def test_marginal_laws_of_two_correlated_tokens_are_enough_for_their_joint_entropy() -> None:
    table = Table(2, 2, torch.tensor([0.45, 0.1, 0.05, 0.4], dtype=torch.float64))
    process = on_a_line(table)
    grid = Grid(process, table)
    alone = float(torch.special.entr(table.marginals).sum())
    assert alone - table.entropy > 0.05
    assert grid.bound(Exact(table, process)) == pytest.approx(table.entropy, abs=3e-4)
    assert grid.bound(Alone(table, process)) == pytest.approx(alone, abs=3e-4)


@pytest.mark.parametrize("gamma", [-40.0, -15.0, 0.0, 40.0])
def test_extreme_noise_is_finite_in_float32_and_so_are_gradients(gamma: float) -> None:
    table = SQUARE.float().requires_grad_()
    process, x0 = Gaussian(table, LinearGamma(-40, 40)), torch.arange(4)
    level = scalar(gamma).expand(4).clone().requires_grad_()
    z = process.noise(x0, level, normal(4, 2).float())
    logits = process.evidence(z, level)
    losses = [process.integrand(logits, x0, level), process.prior_nll(x0), process.reconstruction_nll(x0, z)]
    ends = scalar(-40.0), scalar(40.0)
    for end in ends:
        losses.append(process.flow(z, table, level.detach(), end).sum(-1))
    losses.append(process.ancestral(z, table, level.detach(), ends[0], z).sum(-1))
    losses.append(process.renoise(z, level.detach(), ends[1], z).sum(-1))
    assert all(loss.isfinite().all() for loss in losses)
    for loss in losses:
        for gradient in torch.autograd.grad(loss.sum(), [table, level], retain_graph=True, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()
    if gamma <= -15:
        assert float(losses[0].detach().max()) < 1e-6


def test_the_integrand_keeps_its_digits_where_a_law_is_nearly_certain() -> None:
    process = Gaussian(SQUARE, WIDE)
    logits = torch.tensor([[20.0, 0.0, 1.0, -3.0]])
    x0, gamma = torch.tensor([0]), scalar(-16.0).expand(1)
    truth = process.integrand(logits.double(), x0, gamma)
    found = Gaussian(SQUARE.float(), WIDE).integrand(logits, x0, gamma)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=0)


def test_an_informed_network_starts_from_what_each_token_says_alone() -> None:
    table = Table.random(3, 2)
    process = on_a_line(table)
    informed = Informed(lambda noisy, gamma, belief=None: table.marginals.log(), process)
    z, gamma = normal(4, 2, 1), scalar(0.3).expand(4, 1)
    torch.testing.assert_close(
        informed(z, gamma).log_softmax(-1), Alone(table, process)(z, gamma).log_softmax(-1)
    )


@pytest.mark.parametrize("shape", [(3,), (1, 4), (2, 2, 2)])
def test_a_table_that_is_none_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="must be"):
        Gaussian(torch.zeros(shape), WIDE)
