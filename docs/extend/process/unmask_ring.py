"""Noise on a ring: a token wanders to its neighbours, so that near values, say digits or levels, stay near."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.diffusion import Prediction, Process

_LEAST = 1e-30


@dataclass(frozen=True)
class Ring(Process):
    """A random walk on K tokens, a step to either side alike, at the rate -speed * alpha' / alpha.

    The kernel is a circulant matrix, so its eigenvalues are (alpha_t / alpha_s)^(speed (1 - cos(2 pi j / K))). For
    small K: every token costs K^2 operations.
    """

    speed: float = 1.0

    prediction = "leave_one_out"
    masks = False

    def prior(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.vocab_size, shape, generator=generator, device=generator.device)

    def corrupt(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        law = self.marginal(x0, t).reshape(-1, self.vocab_size)
        return torch.multinomial(law, 1, generator=generator).reshape(x0.shape)

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        return self.transition(x0, torch.zeros_like(t), t)

    def transition(self, xs: Tensor, s: Tensor, t: Tensor) -> Tensor:
        index = xs[..., None, None].expand(*xs.shape, 1, self.vocab_size)
        kernel = self._kernel(s, t).expand(*xs.shape, self.vocab_size, self.vocab_size)
        return kernel.gather(-2, index)[..., 0, :]

    def posterior(self, prediction: Tensor, xt: Tensor, s: Tensor, t: Tensor) -> Tensor:
        early = self._noisy(prediction.exp(), s)
        law = early * self.transition(xt, s, t).to(prediction.dtype)  # the kernel is symmetric
        return law / law.sum(-1, keepdim=True)

    def nll(self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Sum R(y -> x_t) (rhat_y - r_y + r_y log(r_y / rhat_y)) over the two neighbours y of x_t."""
        states = torch.stack([xt, (xt - 1) % self.vocab_size, (xt + 1) % self.vocab_size], -1)
        # Ratios of small chances: float64, for their gradients too.
        true = self.marginal(x0, t).gather(-1, states).clamp_min(_LEAST)
        guess = self._noisy(prediction.double().exp(), t).gather(-1, states).clamp_min(_LEAST)
        r, rhat = true[..., 1:] / true[..., :1], guess[..., 1:] / guess[..., :1]
        terms = rhat - r + r * (r.log() - rhat.log())
        t = t.double()
        rate = -self.speed / 2 * self.schedule.alpha_prime(t) / self.schedule.alpha(t).clamp_min(_LEAST)
        nats: Tensor = rate * terms.sum(-1)
        return nats.to(prediction.dtype)

    def cross_entropy(
        self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor, *, source: Prediction
    ) -> Tensor:
        posterior = self.convert(prediction, xt, t, source=source, target="posterior")
        return -posterior.gather(-1, x0[..., None])[..., 0]

    def prior_nll(self, x0: Tensor) -> Tensor:
        end = self.marginal(x0, torch.ones((), dtype=torch.float64, device=x0.device))
        return (end * (end * self.vocab_size).clamp_min(_LEAST).log()).sum(-1)

    def convert(
        self, prediction: Tensor, xt: Tensor, t: Tensor, *, source: Prediction, target: Prediction
    ) -> Tensor:
        if source == target:
            return prediction
        evidence = self.likelihood(xt, t).clamp_min(_LEAST).log().to(prediction.dtype)
        return (prediction + (evidence if target == "posterior" else -evidence)).log_softmax(-1)

    def _kernel(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the law of the state at t for every state at s: (..., K, K) float64."""
        places = torch.arange(self.vocab_size, device=t.device)
        kept = self.schedule.alpha(t.double()) / self.schedule.alpha(s.double()).clamp_min(_LEAST)
        waves = (2 * math.pi / self.vocab_size * places).double().cos()
        row: Tensor = torch.fft.fft(kept[..., None] ** (self.speed * (1 - waves))).real / self.vocab_size
        return row.clamp_min(0)[..., (places[:, None] - places) % self.vocab_size]

    def _noisy(self, law: Tensor, t: Tensor) -> Tensor:
        """Return the law at time t of a token with the given law at time 0: (..., K)."""
        kernel = self._kernel(torch.zeros_like(t), t).to(law.dtype)
        return (law[..., None, :] @ kernel)[..., 0, :]
