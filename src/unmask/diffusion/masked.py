"""Masked (absorbing) noise: every token is kept or becomes the mask."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.denoising import Prediction
from unmask.diffusion.mixture import LEAST, Levels, Mixture
from unmask.diffusion.process import PROCESSES


@PROCESSES.register("masked")
@final
@dataclass(frozen=True)
class Masked(Mixture):
    """Keep a token with alpha, else mask it (Sahoo et al. 2024, MDLM, arXiv 2406.07524; Shi et al. 2024, MD4).

    What is not masked is clean, whatever the prediction says there. At masked positions posterior and leave-one-out
    agree. Costs of `nll` and `cross_entropy`: one number per token, nothing over the vocabulary.
    """

    prediction = "posterior"
    masks = True

    def levels(self, t: Tensor) -> Levels:
        alpha, zero = self.schedule.alpha(t), torch.zeros_like(t)
        rate = -self.schedule.alpha_prime(t) / alpha.clamp_min(LEAST)
        return Levels(alpha, zero, 1 - alpha, zero, rate)

    def posterior(self, prediction: Tensor, xt: Tensor, s: Tensor, t: Tensor) -> Tensor:
        early, late = self.schedule.alpha(s.double()), self.schedule.alpha(t.double())
        is_masked = self.is_masked(xt)
        reveal = ((early - late) / (1 - late).clamp_min(LEAST)).to(prediction.dtype)
        reveal = reveal.where(is_masked, 0)[..., None]
        same = F.one_hot(xt, self.num_states).to(prediction.dtype)
        revealed = self._spread(prediction.exp()) * reveal
        return torch.where(is_masked[..., None], revealed + same * (1 - reveal), same)

    def nll(self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        weight = -self.schedule.alpha_prime(t) / (1 - self.schedule.alpha(t)).clamp_min(LEAST)
        weight = weight.where(self.is_masked(xt), 0)  # it may be infinite at time 0
        return weight.to(prediction.dtype) * self.cross_entropy(prediction, x0, xt, t, source="posterior")

    def cross_entropy(
        self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor, *, source: Prediction
    ) -> Tensor:
        true = prediction.gather(-1, x0[..., None])[..., 0]
        return -true.where(self.is_masked(xt), 0)

    def convert(
        self, prediction: Tensor, xt: Tensor, t: Tensor, *, source: Prediction, target: Prediction
    ) -> Tensor:
        """Set the posterior of a clean token to that token; its leave-one-out law cannot be had from there."""
        if target == source or target == "leave_one_out":
            return prediction
        clean = F.one_hot(xt.clamp_max(self.vocab_size - 1), self.vocab_size).to(prediction.dtype).log()
        return prediction.where(self.is_masked(xt)[..., None], clean)
