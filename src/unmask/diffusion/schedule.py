"""Schedules: the probability alpha(t) that a token is still clean at time t, from 0 (clean) to 1 (noise)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from unmask.errors import UsageError
from unmask.registry import Registry


class Schedule(ABC):
    """A decreasing alpha(t). Every method maps a floating tensor to one of the same shape and dtype.

    A schedule need not reach 1 at time 0 or 0 at time 1. What it leaves out is charged by the process's
    `cross_entropy` at time 0 and by its `prior_nll`.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the probability that a token is clean at time `t` in [0, 1]."""

    @abstractmethod
    def alpha_prime(self, t: Tensor) -> Tensor:
        """Return d alpha / dt."""

    @abstractmethod
    def time_of(self, alpha: Tensor) -> Tensor:
        """Return the time at which `alpha` is reached; the nearer end for values that never are."""


SCHEDULES: Registry[type[Schedule]] = Registry("schedule", group="unmask.schedules")
"""Schedule classes by the name that `SCHEDULES.parse` knows them by; each is a dataclass of numbers with defaults."""


@SCHEDULES.register("linear")
@final
@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - t: as many tokens are noised as time has passed."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_prime(self, t: Tensor) -> Tensor:
        return -t.new_ones(t.shape)

    def time_of(self, alpha: Tensor) -> Tensor:
        return (1 - alpha).clamp(0, 1)


@SCHEDULES.register("cosine")
@final
@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = 1 - cos(pi (1 - t) / 2): little noise for long (Shi et al. 2024, MD4, arXiv 2406.04329)."""

    def alpha(self, t: Tensor) -> Tensor:
        # 1 - cos x = 2 sin^2(x/2) keeps its digits where alpha is small.
        return 2 * (math.pi / 4 * (1 - t)).sin().square()

    def alpha_prime(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * (math.pi / 2 * (1 - t)).sin()

    def time_of(self, alpha: Tensor) -> Tensor:
        return 1 - 4 / math.pi * (alpha.clamp(0, 1) / 2).sqrt().asin()


@SCHEDULES.register("polynomial")
@final
@dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = 1 - t^power (Shi et al. 2024, MD4, arXiv 2406.04329)."""

    power: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power > 0):
            raise UsageError(f"schedule 'polynomial': power={self.power!r} must be above 0 and finite")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def alpha_prime(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)

    def time_of(self, alpha: Tensor) -> Tensor:
        return (1 - alpha).clamp(0, 1) ** (1 / self.power)


@SCHEDULES.register("log-linear")
@final
@dataclass(frozen=True)
class LogLinear(Schedule):
    """-log alpha = -log(1 - (1 - epsilon) t): a share `epsilon` stays clean (Lou et al. 2023, arXiv 2310.16834)."""

    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < 1:
            raise UsageError(f"schedule 'log-linear': epsilon={self.epsilon!r} must be in [0, 1)")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.epsilon) * t

    def alpha_prime(self, t: Tensor) -> Tensor:
        return (self.epsilon - 1) * t.new_ones(t.shape)

    def time_of(self, alpha: Tensor) -> Tensor:
        return ((1 - alpha) / (1 - self.epsilon)).clamp(0, 1)


@SCHEDULES.register("clipped")
@final
@dataclass(frozen=True)
class Clipped(Schedule):
    """alpha = 1 - low - (high - low) t: noise rates uniform between `low` and `high`.

    For training with little gradient variance (Arriola et al. 2025, BD3-LM, arXiv 2503.09573); its
    integral alone is no bound.
    """

    low: float = 0.3
    high: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(f"schedule 'clipped': {self.low!r}, {self.high!r} must be 0 <= low < high <= 1")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.low - (self.high - self.low) * t

    def alpha_prime(self, t: Tensor) -> Tensor:
        return (self.low - self.high) * t.new_ones(t.shape)

    def time_of(self, alpha: Tensor) -> Tensor:
        return ((1 - alpha - self.low) / (self.high - self.low)).clamp(0, 1)
