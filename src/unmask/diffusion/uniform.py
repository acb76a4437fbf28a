"""Uniform-state noise: every token is kept or becomes any token."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unmask.diffusion.mixture import LEAST, Levels, UniformMixture
from unmask.diffusion.process import PROCESSES


@PROCESSES.register("uniform")
@final
@dataclass(frozen=True)
class Uniform(UniformMixture):
    """Keep a token with alpha, else draw one of K (Schiff et al. 2024, UDLM, arXiv 2412.10193; Duo, 2506.10892)."""

    masks = False

    def levels(self, t: Tensor) -> Levels:
        alpha, zero = self.schedule.alpha(t), torch.zeros_like(t)
        rate = -self.schedule.alpha_prime(t) / alpha.clamp_min(LEAST)
        return Levels(alpha, 1 - alpha, zero, rate, zero)
