"""The training losses of a denoiser under Gaussian noise; the convention of sums and counts is that of `objective`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser
from unmask.diffusion.objective import Weighting, own_beliefs
from unmask.diffusion.times import stratified_times

_ABOVE_GIVEN = 1e-6


@dataclass(frozen=True)
class GaussianNoised:
    """Rows after noise: `z` (B, L, E); `gamma` (B, L) float64, what the denoiser is told; `t` (B,) float64.

    `trained` (B, L) bool: noised and scored. The others are given: at gamma(0), and free of the noise that even there
    is left.
    """

    z: Tensor
    gamma: Tensor
    t: Tensor
    trained: Tensor


@dataclass(frozen=True)
class GaussianLoss:
    """A sum in nats over `num_tokens` tokens, and what the schedule minimises: scalars, differentiable.

    `fit` is a number without unit, already a mean, and has no gradient outside the schedule; `total` has none in the
    schedule but for the ends' under the bound. So their sum, with any weight, trains both.
    """

    total: Tensor
    fit: Tensor
    num_tokens: int


def gaussian_loss(
    denoiser: GaussianDenoiser,
    x0: Tensor,
    process: Gaussian,
    generator: torch.Generator,
    *,
    trained: Tensor | None = None,
    weighting: Weighting = "bound",
    belief_share: float = 0.0,
) -> GaussianLoss:
    """Noise clean rows (B, L), denoise them once and score the result.

    `weighting`: `bound` for an unbiased estimate of the variational bound, whole, with what its ends charge; embeddings
    are trained by it too (Plaid, arXiv 2305.18619; RePlaid, arXiv 2605.18530). `cross_entropy` for -log p(x_0 | z)
    at times as the schedule spreads them (CDCD, arXiv 2211.15089; LangFlow, arXiv 2604.11748). Both have the same
    optimum, the marginal law of each token. `trained` (B, L) bool: positions that are noised and scored, all unless
    given. `belief_share`: share of rows that see the denoiser's own first prediction, at the cost of one more forward.
    """
    trained = torch.ones_like(x0, dtype=torch.bool) if trained is None else trained
    t = stratified_times(len(x0), generator).to(x0.device)
    gamma = process.schedule.gamma(t)
    if weighting == "cross_entropy":
        gamma = gamma.detach()  # it would choose the ends with the least noise
    noised = noise_rows(x0, process, t, gamma, generator, trained=trained)
    belief = own_beliefs(lambda: denoiser(noised.z, noised.gamma), belief_share, generator)
    logits = denoiser(noised.z, noised.gamma, belief)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    with torch.set_grad_enabled(weighting == "cross_entropy" and torch.is_grad_enabled()):
        laws = logits.log_softmax(-1, dtype=dtype)
        entropy = -laws.gather(-1, x0[..., None])[..., 0].where(trained, 0)
    with torch.set_grad_enabled(weighting == "bound" and torch.is_grad_enabled()):
        integrand = bound_integrand(logits, x0, noised, process)
    size = trained.sum(-1).clamp_min(1)
    fit = process.schedule.fit_loss(noised.t, integrand.sum(-1) / size, entropy.sum(-1) / size)
    if weighting == "cross_entropy":
        total = entropy.sum()
    else:
        # A share of the rows stands for all, for the ends are cheap to guess and dear to compute.
        some = torch.randperm(len(x0), generator=generator, device=generator.device)[: -(-len(x0) // 8)]
        some = some.to(x0.device)
        ends = bound_ends(x0[some], process, generator, trained=trained[some]).sum()
        total = integrand.sum() + ends * (len(x0) / len(some))
    return GaussianLoss(total, fit, int(trained.sum()))


def noise_rows(
    x0: Tensor, process: Gaussian, t: Tensor, gamma: Tensor, generator: torch.Generator, *, trained: Tensor
) -> GaussianNoised:
    """Noise the `trained` (B, L) positions of clean rows (B, L), each row at its time `t` and its `gamma`, (B,)."""
    low, _ = process.schedule.ends()
    told = told_levels(gamma[:, None], trained, low.detach())
    z = process.corrupt(x0, told, generator)
    return GaussianNoised(torch.where(trained[..., None], z, given_rows(x0, process)), told, t, trained)


def told_levels(gamma: Tensor, noisy: Tensor, low: Tensor) -> Tensor:
    """Return what a denoiser is told of each token: its gamma where it is `noisy` (B, L), else `low`, the lowest one.

    The lowest is kept for given tokens, which are shown without the noise that is left there: noisy ones stay above it.
    """
    return torch.where(noisy, gamma.clamp_min(low + _ABOVE_GIVEN), low)


def given_rows(tokens: Tensor, process: Gaussian) -> Tensor:
    """Return how tokens that are given are shown to a denoiser: (B, L, E), the mean of what time 0 makes of them."""
    low, _ = process.schedule.ends()
    clean = process.embed(tokens)
    return process.noise(tokens, low.detach(), torch.zeros_like(clean))


def bound_integrand(logits: Tensor, x0: Tensor, noised: GaussianNoised, process: Gaussian) -> Tensor:
    """Return the bound's diffusion part, nats per unit of time, zero where not trained: (B, L)."""
    slope = process.schedule.slope(noised.t)[:, None]
    losses = process.integrand(logits, x0, noised.gamma)
    return (slope.to(losses.dtype) * losses).where(noised.trained, 0)


def bound_ends(x0: Tensor, process: Gaussian, generator: torch.Generator, *, trained: Tensor) -> Tensor:
    """Return what the bound charges besides: that time 1 is not all noise, and time 0 not all clean; (B, L) nats."""
    low, _ = process.schedule.ends()
    z = process.corrupt(x0, low, generator)
    return (process.prior_nll(x0) + process.reconstruction_nll(x0, z)).where(trained, 0)
