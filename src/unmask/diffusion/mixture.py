"""What masked, uniform and hybrid noise share: a token is kept, replaced by a uniform one, or masked."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.denoising import Prediction
from unmask.diffusion.process import Process

LEAST = 1e-30
"""Stands for a probability of zero under a logarithm or a fraction bar; float32 still holds its inverse."""


class Levels(NamedTuple):
    """The law of a noisy token at some times, and how fast it changes: float64, all of the times' shape.

    With `alpha` it is the clean token, with `uniform` any of the K tokens alike, with `mask` the mask; they sum to
    one. `uniform_rate` and `mask_rate` are the rates per unit of time at which any state jumps there.
    """

    alpha: Tensor
    uniform: Tensor
    mask: Tensor
    uniform_rate: Tensor
    mask_rate: Tensor


@dataclass(frozen=True)
class Mixture(Process):
    """x_t given x_0 = x is alpha [x] + uniform / K + mask [m], with kernels to match.

    The kernel from s to t keeps a state with alpha_t / alpha_s, and else draws from what the levels at t hold more
    than the levels at s have kept (von Rütte et al. 2025, GIDD, arXiv 2503.04482).
    """

    @abstractmethod
    def levels(self, t: Tensor) -> Levels:
        """Return the levels at times `t`, float64."""

    @final
    def prior(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        # The noise of a random token: finite divergence from every schedule's end, also one that keeps some tokens.
        tokens = torch.randint(self.vocab_size, shape, generator=generator, device=generator.device)
        return self.corrupt(tokens, torch.ones((), device=generator.device), generator)

    @final
    def corrupt(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        levels = self.levels(t.double())
        device = generator.device
        draw = torch.rand(x0.shape, dtype=torch.float64, generator=generator, device=device).to(x0.device)
        noisy: Tensor = x0
        if self.mask_token_id is not None:
            noisy = noisy.masked_fill(draw >= 1 - levels.mask, self.mask_token_id)
        tokens = torch.randint(self.vocab_size, x0.shape, generator=generator, device=device).to(x0.device)
        return torch.where(draw < levels.uniform, tokens, noisy)

    @final
    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        levels = self.levels(t.double())
        return self._law(x0, levels.alpha, levels.uniform, levels.mask)

    @final
    def transition(self, xs: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self._law(xs, *self._kernel(s, t))

    @final
    def prior_nll(self, x0: Tensor) -> Tensor:
        levels = self.levels(torch.ones((), dtype=torch.float64, device=x0.device))
        token = levels.alpha + levels.uniform
        kept = levels.alpha / token.clamp_min(LEAST)
        other = (1 - kept) / self.vocab_size
        true = kept + other
        divergence = torch.special.xlogy(true, true * self.vocab_size)
        divergence = divergence + (self.vocab_size - 1) * torch.special.xlogy(other, other * self.vocab_size)
        nats: Tensor = token * divergence
        return nats.expand(x0.shape)

    @final
    def _kernel(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return how the kernel from s to t keeps a state, draws a uniform token, or masks: float64."""
        early, late = self.levels(s.double()), self.levels(t.double())
        kept = late.alpha / early.alpha.clamp_min(LEAST)
        uniform = (late.uniform - kept * early.uniform).clamp_min(0)
        return kept, uniform, (late.mask - kept * early.mask).clamp_min(0)

    @final
    def _law(self, tokens: Tensor, kept: Tensor, uniform: Tensor, mask: Tensor) -> Tensor:
        law = kept.new_zeros(*tokens.shape, self.num_states)
        law[..., : self.vocab_size] = (uniform / self.vocab_size)[..., None]
        if self.mask_token_id is not None:
            law[..., self.mask_token_id] += mask
        return law.scatter_add(-1, tokens[..., None], kept.expand(tokens.shape)[..., None])

    @final
    def _spread(self, law: Tensor) -> Tensor:
        """Widen a law over clean tokens to one over states: (..., K) -> (..., S)."""
        return F.pad(law, (0, self.num_states - self.vocab_size))


@dataclass(frozen=True)
class UniformMixture(Mixture):
    """A mixture with uniform noise, so that a visible token may be wrong: its prediction is leave-one-out.

    Writing p for the prediction, phat_t(y) = alpha p(y) + uniform / K is the predicted law of the noisy token. `nll`
    and the conversions pass over the vocabulary once, in the prediction's dtype, and keep one (..., K) tensor for
    the gradient besides the prediction; everything else is one number per token.
    """

    prediction = "leave_one_out"

    @final
    def posterior(self, prediction: Tensor, xt: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Weigh the predicted law at s by the kernel into x_t: (kept [y = x_t] + fresh(x_t)) phat_s(y), normalised."""
        dtype = prediction.dtype
        early = self.levels(s.double())
        kept, uniform, mask = self._kernel(s, t)
        fresh = torch.where(self.is_masked(xt), mask, uniform / self.vocab_size)
        law = early.alpha[..., None].to(dtype) * prediction.exp()
        law = self._spread(law + (early.uniform / self.vocab_size)[..., None].to(dtype))
        if self.mask_token_id is not None:
            law[..., self.mask_token_id] = early.mask.to(dtype)
        # What neither prediction nor noise can explain stays as it is: hence LEAST.
        stay = kept.to(dtype) * law.gather(-1, xt[..., None])[..., 0] + LEAST
        law = (law * fresh[..., None].to(dtype)).scatter_add(-1, xt[..., None], stay[..., None])
        return law / law.sum(-1, keepdim=True)

    @final
    def nll(self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return w [KL(q || phat) + rho - log rho - 1] with q the law of x_t given x_0 and rho = q(x_t) / phat(x_t).

        The weight w is the rate of jumps into the state x_t over q(x_t): GIDD, arXiv 2503.04482.
        """
        dtype, size = prediction.dtype, self.vocab_size
        levels = self.levels(t.double())
        is_masked, is_true = self.is_masked(xt), xt.eq(x0)
        each = levels.uniform / size
        here = torch.where(is_masked, levels.mask, each + levels.alpha * is_true)
        rate = torch.where(is_masked, levels.mask_rate, levels.uniform_rate / size)
        weight = (rate / here.clamp_min(LEAST)).to(dtype)

        odds = self._log_odds(levels).to(dtype)
        true = prediction.gather(-1, x0[..., None])[..., 0]
        # log q(x_0) / phat(x_0); as a difference of two softplus it would lose its digits when odds are large.
        surprise = -torch.logaddexp(true + F.logsigmoid(odds), F.logsigmoid(-odds))
        others = F.softplus(prediction + odds[..., None]).sum(-1) - F.softplus(true + odds)
        divergence = (each + levels.alpha).to(dtype) * surprise - each.to(dtype) * others
        log_rho = torch.where(is_true, surprise, -F.softplus(self._at(prediction, xt) + odds))
        log_rho = log_rho.where(~is_masked, 0)
        return weight * (divergence + log_rho.expm1() - log_rho)

    @final
    def cross_entropy(
        self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor, *, source: Prediction
    ) -> Tensor:
        true = prediction.gather(-1, x0[..., None])[..., 0]
        if source == "posterior":
            return -true
        # The posterior's normaliser is phat(x_t) over uniform / K, as the prediction sums to one.
        odds = self._log_odds(self.levels(t.double())).to(prediction.dtype)
        evidence = F.softplus(odds) * (xt.eq(x0)) - F.softplus(self._at(prediction, xt) + odds)
        return -true - evidence.masked_fill(self.is_masked(xt), 0)

    @final
    def convert(
        self, prediction: Tensor, xt: Tensor, t: Tensor, *, source: Prediction, target: Prediction
    ) -> Tensor:
        if source == target:
            return prediction
        evidence = F.softplus(self._log_odds(self.levels(t.double())).to(prediction.dtype))
        evidence = (evidence if target == "posterior" else -evidence) * ~self.is_masked(xt)
        index = xt.clamp_max(self.vocab_size - 1)[..., None]
        return prediction.scatter_add(-1, index, evidence[..., None]).log_softmax(-1)

    @final
    def _log_odds(self, levels: Levels) -> Tensor:
        """Return log(alpha K / uniform), what tells a kept token from a uniform one; its exponential is finite."""
        alpha = levels.alpha.clamp_min(torch.finfo(torch.float64).tiny)
        return (alpha / levels.uniform.clamp_min(LEAST)).log() + math.log(self.vocab_size)

    @final
    def _at(self, prediction: Tensor, xt: Tensor) -> Tensor:
        """Return the log-probability of the noisy token being the clean one; void where it is the mask."""
        return prediction.gather(-1, xt.clamp_max(self.vocab_size - 1)[..., None])[..., 0]
