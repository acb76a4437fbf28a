"""Hybrid noise: every token is kept, masked, or becomes any token."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from unmask.diffusion.mixture import LEAST, Levels, UniformMixture
from unmask.diffusion.process import PROCESSES
from unmask.errors import UsageError


@PROCESSES.register("hybrid")
@final
@dataclass(frozen=True)
class Hybrid(UniformMixture):
    """Mask tokens, and mix in uniform ones in between (von Rütte et al. 2025, GIDD, arXiv 2503.04482).

    Alpha, mask and uniform relate as alpha_0 : 1 - alpha_0 : c, with alpha_0 the schedule's and
    c = B (alpha_0 (1 - alpha_0))^(gamma / 2). `uniform_share`: the uniform level where alpha_0 is one half, its
    maximum; with 0 this is masked noise.
    """

    uniform_share: float = 0.1
    gamma: float = 1.0

    masks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.uniform_share < 1:
            raise UsageError(f"process 'hybrid': uniform_share={self.uniform_share!r} must be in [0, 1)")
        if not 0 < self.gamma <= 2:  # beyond 2 the rate of uniform jumps turns negative near time 1
            raise UsageError(f"process 'hybrid': gamma={self.gamma!r} must be above 0 and at most 2")
        if self.mask_token_id is not None and self.mask_token_id < self.vocab_size:
            raise UsageError(
                f"process 'hybrid': mask_token_id={self.mask_token_id} is one of the {self.vocab_size} clean tokens",
                "uniform noise would draw it; give an id from vocab_size on",
            )

    def levels(self, t: Tensor) -> Levels:
        kept, slope = self.schedule.alpha(t), self.schedule.alpha_prime(t)
        masked = 1 - kept
        odds = 2**self.gamma * self.uniform_share / (1 - self.uniform_share)
        product = kept * masked
        mixed = odds * product ** (self.gamma / 2)
        total = 1 + mixed
        # Rates: derivative of a level + level * (-alpha' / alpha); the terms in total' cancel.
        leaving = -slope / kept.clamp_min(LEAST)
        growth = mixed * self.gamma / 2 * slope * (masked - kept) / product.clamp_min(LEAST)
        return Levels(
            kept / total, mixed / total, masked / total, (growth + mixed * leaving) / total, leaving / total
        )
