"""Schedules of Gaussian noise: gamma(t), minus the log signal-to-noise ratio at time t from 0 (clean) to 1 (noise)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import UsageError
from unmask.registry import Registry

_LIMIT = 40.0
"""Beyond it a signal-to-noise ratio is out of float32's reach."""

_LEAST = 1e-30


class GaussianSchedule(nn.Module, ABC):
    """An increasing gamma(t), which may learn. Times and gammas are float64 tensors of any shape.

    The bound's value does not depend on what lies between the ends; the variance of its estimates does, and so does the
    quality of few steps, for samplers go from gamma(1) to gamma(0) through evenly spaced times.
    """

    @abstractmethod
    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma at time `t`; differentiable in what the bound itself trains, which is the ends at most."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """Return d gamma / dt."""

    def fit_loss(self, t: Tensor, integrand: Tensor, cross_entropy: Tensor) -> Tensor:
        """Return the scalar that a learning schedule minimises, given the losses of rows at times (B,).

        `integrand`: of the bound, in nats per token and unit of time; `cross_entropy`: in nats per token; both (B,).
        Only the schedule's own parameters have a gradient.
        """
        return t.new_zeros(())

    @final
    def ends(self) -> tuple[Tensor, Tensor]:
        """Return gamma(0) and gamma(1), scalars."""
        device = next(self.parameters(), torch.empty(0)).device
        low, high = self.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)).unbind()
        return low, high

    @final
    def levels(self, num_moves: int) -> Tensor:
        """Return the gammas (num_moves + 1,) of a sampler, from gamma(1) down to gamma(0), without gradient."""
        device = next(self.parameters(), torch.empty(0)).device
        return self.gamma(torch.linspace(1, 0, num_moves + 1, dtype=torch.float64, device=device)).detach()


GAUSSIAN_SCHEDULES: Registry[type[GaussianSchedule]] = Registry(
    "Gaussian schedule", group="unmask.gaussian_schedules"
)
"""Schedule classes by the name that `GAUSSIAN_SCHEDULES.parse` knows them by: dataclasses of numbers with defaults."""


@GAUSSIAN_SCHEDULES.register("linear")
@final
@dataclass(eq=False)
class LinearGamma(GaussianSchedule):
    """gamma = low + (high - low) t."""

    low: float = -8.0
    high: float = 8.0

    def __post_init__(self) -> None:
        super().__init__()
        _require_ends("linear", self.low, self.high)

    def gamma(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * t

    def slope(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.high - self.low)


@GAUSSIAN_SCHEDULES.register("learned")
@final
@dataclass(eq=False)
class LearnedGamma(GaussianSchedule):
    """Ends that minimise the bound, and between them the steps that minimise the variance of its estimate.

    Times are uniform, so a schedule is a density p of gamma, here a histogram of `num_bins` over the range; a share of
    it stays uniform, so that no noise level is ever forgotten. With f the bound's integrand per unit of gamma an
    estimate is f / p, its mean does not depend on p, and the gradient of its mean square is that of
    -(f / p)^2 log p at fixed gamma: the denoiser needs no second pass (after Kingma et al. 2021, VDM, arXiv
    2107.00630; Gulrajani and Hashimoto 2023, Plaid, arXiv 2305.18619).
    """

    low: float = -8.0
    high: float = 8.0
    num_bins: int = 64

    _UNIFORM_SHARE = 0.1
    _PACE = 10.0  # a histogram needs larger steps than the weights beside it, whose learning rate it shares

    def __post_init__(self) -> None:
        super().__init__()
        _require_ends("learned", self.low, self.high)
        if self.num_bins < 1:
            raise UsageError(f"Gaussian schedule 'learned': num_bins={self.num_bins} must be at least 1")
        # Of one element each, for the library that shards a model knows no scalars.
        self.middle = nn.Parameter(torch.tensor([(self.low + self.high) / 2]))
        self.log_width = nn.Parameter(torch.tensor([math.log(self.high - self.low)]))
        self.logits = nn.Parameter(torch.zeros(self.num_bins))

    def gamma(self, t: Tensor) -> Tensor:
        chances, before, index = self._bins(t)
        place = (index + (t - before[index]) / chances[index]) / self.num_bins
        return self.middle[0].double() + (place - 0.5) * self.log_width[0].double().exp()

    def slope(self, t: Tensor) -> Tensor:
        chances, _, index = self._bins(t)
        return self.log_width[0].double().exp() / (self.num_bins * chances[index])

    def fit_loss(self, t: Tensor, integrand: Tensor, cross_entropy: Tensor) -> Tensor:
        """Return a scalar with the gradient of the estimate's mean square, in units of that mean square."""
        _, _, index = self._bins(t)
        squares = integrand.detach().double().square()
        return -(squares / squares.mean().clamp_min(_LEAST) * self._chances()[index].log()).mean()

    def _chances(self) -> Tensor:
        chances = (self._PACE * self.logits.double()).softmax(-1)
        return (1 - self._UNIFORM_SHARE) * chances + self._UNIFORM_SHARE / self.num_bins

    def _bins(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each bin's probability and the time before it, (bins,) without gradient, and the bin of each time."""
        chances = self._chances().detach()
        after = chances.cumsum(-1)
        index = torch.searchsorted(after, t.contiguous(), right=True).clamp_max(self.num_bins - 1)
        return chances, after - chances, index


@GAUSSIAN_SCHEDULES.register("gumbel")
@final
@dataclass(eq=False)
class GumbelGamma(GaussianSchedule):
    """Quantiles of a Gumbel law: gamma = location - scale log(-log u), u from `cut` to 1 - `cut`.

    It learns to make time uniform in information: the cross-entropy of the denoiser is fitted by a multiple of the
    law's distribution function, so that it rises about linearly with time (LangFlow, arXiv 2604.11748, whose published
    numbers are the defaults). Nothing else trains it.
    """

    location: float = 4.72
    scale: float = 0.85
    cut: float = 1e-5

    def __post_init__(self) -> None:
        super().__init__()
        if not (self.scale > 0 and 0 < self.cut < 0.5):
            raise UsageError(
                f"Gaussian schedule 'gumbel': scale={self.scale!r} must be above 0, cut={self.cut!r} in (0, 0.5)"
            )
        self.fitted_location = nn.Parameter(torch.tensor([float(self.location)]))
        self.log_scale = nn.Parameter(torch.tensor([math.log(self.scale)]))
        _require_ends("gumbel", *(float(end) for end in self.ends()))

    def gamma(self, t: Tensor) -> Tensor:
        location, scale = self.fitted_location[0].detach().double(), self.log_scale[0].detach().double().exp()
        return location - scale * (-self._quantile(t).log()).log()

    def slope(self, t: Tensor) -> Tensor:
        quantile = self._quantile(t)
        return self.log_scale[0].detach().double().exp() * (2 * self.cut - 1) / (quantile * quantile.log())

    def fit_loss(self, t: Tensor, integrand: Tensor, cross_entropy: Tensor) -> Tensor:
        """Return the mean square of what the fit leaves of the cross-entropy, relative to that of all of it."""
        place = (self.gamma(t) - self.fitted_location[0].double()) / self.log_scale[0].double().exp()
        known = cross_entropy.detach().double()
        shape = (-(-place).exp()).exp()
        ceiling = ((shape * known).sum() / shape.square().sum().clamp_min(_LEAST)).detach()
        return F.mse_loss(ceiling * shape, known) / known.square().mean().clamp_min(_LEAST)

    def _quantile(self, t: Tensor) -> Tensor:
        return self.cut + (1 - 2 * self.cut) * t


def _require_ends(name: str, low: float, high: float) -> None:
    if not -_LIMIT <= low < high <= _LIMIT:
        raise UsageError(
            f"Gaussian schedule {name!r}: gamma goes from {low:.4g} to {high:.4g}",
            f"it must rise, between -{_LIMIT:g} and {_LIMIT:g}",
        )
