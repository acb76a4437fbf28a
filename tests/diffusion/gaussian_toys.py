"""Small laws under Gaussian noise: exact denoisers, and averages over the noise as sums over a grid."""

from dataclasses import dataclass
from functools import cached_property

import torch
from enumerated import Table
from torch import Tensor

from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser
from unmask.diffusion.gaussian_objective import GaussianNoised, bound_integrand
from unmask.diffusion.gaussian_schedule import GaussianSchedule, LinearGamma

LINE = torch.tensor([[-1.0], [0.25], [1.25]], dtype=torch.float64)
"""Three tokens on a line; they differ in their norms."""
SQUARE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
NEW, YORK, SAN, DIEGO = range(4)
WIDE = LinearGamma(-9.0, 11.0)
"""Ends that leave less than 1e-4 nats out."""


def templates() -> Table:
    """Return the law 'New York' or 'San Diego', alike: entropy log 2, and two tokens that know all of each other."""
    table = Table(4, 2, torch.zeros(16, dtype=torch.float64))
    is_one = (table.sequences == torch.tensor([NEW, YORK])).all(-1) | (
        table.sequences == torch.tensor([SAN, DIEGO])
    ).all(-1)
    return Table(4, 2, is_one.double() / 2)


@dataclass(frozen=True, eq=False)
class Exact:
    """The perfect denoiser of a law: the marginal law of each token given all noisy ones."""

    table: Table
    process: Gaussian

    def __call__(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        evidence = self.process.evidence(noisy, gamma.expand(noisy.shape[:-1])).double()
        places = torch.arange(self.table.length)
        scores = self.table.chances.log() + evidence[:, places, self.table.sequences].sum(-1)
        laws = torch.einsum("bx,xlk->blk", scores.softmax(-1), self.table.one_hot)
        return (laws + 1e-300).log().to(noisy.dtype)  # a logarithm of zero has no gradient


@dataclass(frozen=True, eq=False)
class Alone:
    """The best denoiser that looks at a token alone."""

    table: Table
    process: Gaussian

    def __call__(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        evidence = self.process.evidence(noisy, gamma.expand(noisy.shape[:-1]))
        return (self.table.marginals + 1e-300).log().to(noisy.dtype) + evidence


@dataclass(frozen=True, eq=False)
class Bold:
    """A denoiser that is wrong in a smooth way: the exact one at half the noise."""

    exact: GaussianDenoiser

    def __call__(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        return self.exact(noisy, gamma - 0.7)


@dataclass(frozen=True)
class Grid:
    """Sums for integrals: over times by the trapezoidal rule in gamma, over (L, 1) normal noise on a lattice."""

    process: Gaussian
    table: Table
    num_times: int = 25
    num_noises: int = 41

    @cached_property
    def _noise(self) -> tuple[Tensor, Tensor]:
        line = torch.linspace(-6, 6, self.num_noises, dtype=torch.float64)
        lattice = torch.cartesian_prod(*[line] * self.table.length).reshape(-1, self.table.length, 1)
        weights = (-lattice.square().sum((-1, -2)) / 2).exp()
        return lattice, weights / weights.sum()

    def diffusion(self, denoiser: GaussianDenoiser) -> float:
        """Return the mean over texts, noise and times of the bound's integrand, nats."""
        times = self._times()
        schedule = self.process.schedule
        values = torch.stack([self.at(denoiser, float(t)) for t in times]) / schedule.slope(times).detach()
        return float(torch.trapezoid(values, schedule.gamma(times).detach()))

    def _times(self) -> Tensor:
        """Return times at which gammas are evenly spaced, by bisection."""
        low, high = (float(end.detach()) for end in self.process.schedule.ends())
        wanted = torch.linspace(low, high, self.num_times, dtype=torch.float64)
        before, after = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(60):
            middle = (before + after) / 2
            is_early = self.process.schedule.gamma(middle).detach() < wanted
            before, after = torch.where(is_early, middle, before), torch.where(is_early, after, middle)
        return after

    def at(self, denoiser: GaussianDenoiser, time: float) -> Tensor:
        """Return the mean over texts and noise of the bound's integrand at a time, nats per unit of time."""
        noise, weights = self._noise
        possible = self.table.chances > 0
        total = torch.zeros((), dtype=torch.float64)
        for tokens, chance in zip(self.table.sequences[possible], self.table.chances[possible], strict=True):
            x0 = tokens.expand(len(noise), -1)
            t = torch.full((len(noise),), time, dtype=torch.float64)
            gamma = self.process.schedule.gamma(t)[:, None].expand(x0.shape).detach()
            noised = GaussianNoised(
                self.process.noise(x0, gamma, noise),
                gamma,
                t,
                torch.ones_like(x0, dtype=torch.bool),
            )
            logits = denoiser(noised.z, gamma)
            losses = bound_integrand(logits, x0, noised, self.process).sum(-1)
            total = total + chance * (weights * losses).sum()
        return total.detach()

    def ends(self) -> float:
        """Return what the bound charges besides, nats."""
        noise, weights = self._noise
        low, _ = self.process.schedule.ends()
        total = torch.zeros((), dtype=torch.float64)
        for tokens, chance in zip(self.table.sequences, self.table.chances, strict=True):
            z = self.process.noise(tokens.expand(len(noise), -1), low, noise)
            recovered = self.process.reconstruction_nll(tokens.expand(len(noise), -1), z).sum(-1)
            prior = self.process.prior_nll(tokens).sum()
            total = total + chance * ((weights * recovered).sum() + prior)
        return float(total.detach())

    def bound(self, denoiser: GaussianDenoiser) -> float:
        return self.diffusion(denoiser) + self.ends()


def on_a_line(table: Table, schedule: GaussianSchedule = WIDE) -> Gaussian:
    return Gaussian(LINE[: table.vocab_size], schedule)
