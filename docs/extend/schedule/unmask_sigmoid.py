"""A schedule that is steep in the middle: noise comes late, then at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.diffusion import Schedule
from unmask.errors import UsageError


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """alpha = sigmoid(sharpness (1/2 - t)), stretched to reach 1 and 0."""

    sharpness: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < self.sharpness <= 20:
            raise UsageError(f"schedule 'sigmoid': sharpness={self.sharpness!r} must be in (0, 20]")

    def alpha(self, t: Tensor) -> Tensor:
        low, span = self._ends(t)
        return ((self.sharpness * (0.5 - t)).sigmoid() - low) / span

    def alpha_prime(self, t: Tensor) -> Tensor:
        level = (self.sharpness * (0.5 - t)).sigmoid()
        return -self.sharpness * level * (1 - level) / self._ends(t)[1]

    def time_of(self, alpha: Tensor) -> Tensor:
        low, span = self._ends(alpha)
        return (0.5 - (low + span * alpha.clamp(0, 1)).logit() / self.sharpness).clamp(0, 1)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain sigmoid's value at time 1, and how much more it is at time 0."""
        high, low = (
            torch.tensor([0.5, -0.5], dtype=like.dtype, device=like.device).mul(self.sharpness).sigmoid()
        )
        return low, high - low
