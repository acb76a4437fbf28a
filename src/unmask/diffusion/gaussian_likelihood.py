"""Unbiased estimates of -log p(text) under Gaussian noise: by the variational bound, and by the probability flow."""

from itertools import pairwise

import torch
from torch import Tensor

from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser, log_sigma
from unmask.diffusion.gaussian_objective import (
    bound_ends,
    bound_integrand,
    given_rows,
    noise_rows,
    told_levels,
)
from unmask.diffusion.times import stratified_times


@torch.no_grad()
def bound_draws(
    denoiser: GaussianDenoiser,
    x0: Tensor,
    process: Gaussian,
    generator: torch.Generator,
    *,
    scored: Tensor | None = None,
) -> Tensor:
    """Draw an estimate of the bound on -log p of each clean row (B, L): (B,) float64, nats.

    One forward, without a belief (`Reconsidered` gives it one); times are stratified over the rows, so copies of one
    text make good use of them. `scored` (B, L) bool: tokens that are noised and count, all unless
    given; the others are given.
    """
    scored = torch.ones_like(x0, dtype=torch.bool) if scored is None else scored
    t = stratified_times(len(x0), generator).to(x0.device)
    noised = noise_rows(x0, process, t, process.schedule.gamma(t), generator, trained=scored)
    losses = bound_integrand(denoiser(noised.z, noised.gamma), x0, noised, process)
    ends = bound_ends(x0, process, generator, trained=scored)
    return losses.double().sum(-1) + ends.double().sum(-1)


def flow_draws(
    denoiser: GaussianDenoiser,
    x0: Tensor,
    process: Gaussian,
    generator: torch.Generator,
    *,
    num_steps: int,
    scored: Tensor | None = None,
) -> Tensor:
    """Draw an estimate of -log p of each clean row (B, L) under the deterministic sampler: (B,) float64, nats.

    The law is that of the probability flow from standard normal noise at time 1 to z_0 at time 0, then of tokens
    given z_0 by the evidence alone. A draw is -log p(z_0) - log p(x | z_0) + log q(z_0 | x) with z_0 from q, whose
    mean is at least -log p(x). With y = z / sigma and tau = alpha / sigma the flow is dy / d tau = mean(y), so log
    p(z_0) needs the integral of the mean's divergence, which one random probe for each row estimates (Song et al.
    2020, arXiv 2011.13456; Hutchinson). Steps are those of Runge and Kutta, of fourth order and exact for a
    constant mean, between evenly spaced times, four forwards and backwards each; their error is not in the spread
    of the draws. The denoiser is called without a belief; `Reconsidered` gives it one that is differentiated too.
    `scored`: as in `bound_draws`.
    """
    scored = torch.ones_like(x0, dtype=torch.bool) if scored is None else scored
    free, shown = scored[..., None], given_rows(x0, process).detach()
    levels = process.schedule.levels(num_steps).flip(0).to(x0.device)
    low, high = levels[0], levels[-1]
    noise, probe = (
        draw.to(shown).where(free, 0) for draw in _noise_and_probe(shown.shape, shown.dtype, generator)
    )
    z = process.noise(x0, low, noise).detach()
    nats = process.reconstruction_nll(x0, z).detach().double().where(scored, 0).sum(-1)

    def slope(y: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Return d y / d tau, the expected embedding, and its divergence: (B, L, E), (B,)."""
        gamma = -2 * tau.log()
        sigma = log_sigma(gamma).exp()
        with torch.enable_grad():
            z = torch.where(free, sigma.to(y.dtype) * y, shown).requires_grad_()
            expected = process.mean(denoiser(z, told_levels(gamma, scored, low)).softmax(-1))
            (gradient,) = torch.autograd.grad((expected * probe).sum(), z)
        return expected.detach(), sigma * (gradient * probe).double().sum((-1, -2))

    y = z / log_sigma(low).exp().to(z.dtype)
    for tau, target in pairwise((-levels / 2).exp()):
        step = target - tau  # tau falls
        length, middle = step.to(y.dtype), tau + step / 2
        first, first_change = slope(y, tau)
        second, second_change = slope(y + length / 2 * first, middle)
        third, third_change = slope(y + length / 2 * second, middle)
        last, last_change = slope(y + length * third, target)
        y = y + length / 6 * (first + 2 * second + 2 * third + last)
        nats = nats - step / 6 * (first_change + 2 * second_change + 2 * third_change + last_change)
    z = y.double() * log_sigma(high).exp()
    squares = (z.where(free, 0).square() - noise.double().square()).sum((-1, -2))
    return nats + squares / 2 - scored.sum(-1) * process.size * log_sigma(high)


def _noise_and_probe(
    shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    device = generator.device
    noise = torch.randn(shape, dtype=dtype, generator=generator, device=device)
    signs = torch.randint(2, shape, generator=generator, device=device)
    return noise, (2 * signs - 1).to(dtype)
