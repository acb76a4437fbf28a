"""Gaussian noise on token embeddings: what it does to them, how it is undone, and what the bound charges for it."""

from dataclasses import dataclass
from typing import Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.gaussian_schedule import GaussianSchedule
from unmask.errors import UsageError


class GaussianDenoiser(Protocol):
    """Noisy embeddings to the law of the clean token at the same position."""

    def __call__(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        """Return logits (B, L, K) for `noisy` (B, L, E) at `gamma` (B, L), float64.

        `belief` (B, L, K): probabilities of an earlier prediction (self-conditioning; Chen et al. 2022, arXiv
        2208.04202), rows of zeros where there is none. A denoiser without that port does not look at it.
        """


@final
@dataclass(frozen=True, eq=False)
class Gaussian:
    """Variance-preserving noise: z = alpha e + sigma noise, alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma).

    `embeddings` (K, E), with a row e for each of K tokens; any norm, and different ones for different tokens. Tokens
    have any shape (...), noisy embeddings are (..., E), gammas broadcast to (...), so every token may have its own
    noise. What follows from gamma alone is float64; results have the embeddings' dtype. In nats, -log p(x) is at most

        prior_nll(x)  +  integral of integrand(.) d gamma from gamma(0) to gamma(1)  +  reconstruction_nll(x, z_0)

    on average over z (Kingma et al. 2021, VDM, arXiv 2107.00630). With the exact marginal law of each token it is the
    entropy, up to what the ends leave: Gaussian noise factorises nothing.
    """

    embeddings: Tensor
    schedule: GaussianSchedule

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) < 2:
            raise UsageError(f"embeddings {tuple(self.embeddings.shape)} must be (K, E) with K at least 2")

    @property
    def vocab_size(self) -> int:
        """K."""
        return len(self.embeddings)

    @property
    def size(self) -> int:
        """E, the size of an embedding."""
        return self.embeddings.shape[1]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of clean tokens: (..., E)."""
        return F.embedding(tokens, self.embeddings)

    def corrupt(self, x0: Tensor, gamma: Tensor, generator: torch.Generator) -> Tensor:
        """Draw z given the clean tokens: (..., E), differentiable in the embeddings and in gamma."""
        clean = self.embed(x0)
        shape, device = clean.shape, generator.device
        noise = torch.randn(shape, dtype=clean.dtype, generator=generator, device=device).to(clean.device)
        return self.noise(x0, gamma, noise)

    def noise(self, x0: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
        """Return z made of clean tokens and standard normal `noise` (..., E)."""
        return self.around(self.embed(x0), gamma, noise)

    def around(self, clean: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
        """Return z made of a clean embedding (..., E) and standard normal `noise` (..., E)."""
        return _wide(log_alpha(gamma).exp(), noise) * clean + _wide(log_sigma(gamma).exp(), noise) * noise

    def evidence(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Return log q(z | x) for every clean token x, up to a term that all share: (..., K).

        It is the posterior of a token that has no neighbours and is one of K alike, in closed form.
        """
        dtype = torch.promote_types(z.dtype, torch.float32)
        table = self.embeddings.to(dtype)
        # alpha / sigma^2 and half of alpha^2 / sigma^2; all of it is one product, for K is large.
        slope = _wide((F.softplus(-gamma) / 2 - gamma / 2).exp(), z).to(dtype)
        half = ((-gamma).exp() / 2).expand(z.shape[:-1])[..., None].to(dtype)
        norms = table.square().sum(-1, keepdim=True)
        with _in_full(z):
            return torch.cat([slope * z.to(dtype), -half], -1) @ torch.cat([table, norms], -1).T

    def mean(self, law: Tensor) -> Tensor:
        """Return the embedding that a law over tokens expects: (..., K) probabilities -> (..., E)."""
        return law.to(self.embeddings.dtype) @ self.embeddings

    def integrand(self, logits: Tensor, x0: Tensor, gamma: Tensor) -> Tensor:
        """Return half the square error of the expected embedding times the signal-to-noise ratio: (...).

        Nats per unit of gamma, for half the integral of the square error over the ratio is the bound's diffusion part.
        """
        law = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        # Summed over wrong tokens only: the ratio may be 1e8, and 1 - law[x0] has no digits left there.
        wrong = law.scatter(-1, x0[..., None], 0.0)
        table = self.embeddings.to(law.dtype)
        with _in_full(wrong):
            error = wrong @ table - wrong.sum(-1, keepdim=True) * F.embedding(x0, table)
        return ((-gamma).exp() / 2).to(law.dtype) * error.square().sum(-1)

    def prior_nll(self, x0: Tensor) -> Tensor:
        """Return the divergence of the law of z at time 1 from a standard normal one: (...), nats."""
        _, high = self.schedule.ends()
        norm = self.embed(x0).square().sum(-1)
        excess = F.softplus(-high) - (-high).sigmoid()  # of an empty embedding, per dimension, twice
        return (norm * (-high).sigmoid().to(norm.dtype) + (self.size * excess).to(norm.dtype)) / 2

    def reconstruction_nll(self, x0: Tensor, z: Tensor) -> Tensor:
        """Return -log p(x | z) at time 0 by the evidence alone, which needs no denoiser: (...), nats."""
        low, _ = self.schedule.ends()
        logits = self.evidence(z, low)
        return logits.logsumexp(-1) - logits.gather(-1, x0[..., None])[..., 0]

    def flow(self, z: Tensor, mean: Tensor, gamma: Tensor, target: Tensor) -> Tensor:
        """Move along the probability flow from `gamma` to `target`, as if `mean` (..., E) were the clean embedding.

        An Euler step in z / alpha over sigma / alpha (Karras et al. 2022, EDM, arXiv 2206.00364), which for a constant
        mean is exact however long it is. In either direction.
        """
        keep = (log_sigma(target) - log_sigma(gamma)).exp()
        return _wide(keep, z) * z + _wide(_gain(gamma, target), z) * mean

    def lean(self, gamma: Tensor, target: Tensor) -> Tensor:
        """Return the weight of the mean at `target`, beside one minus it for `gamma`, in a step of second order.

        The flow's solution for a mean that is linear in gamma between the two; one half for short steps.
        """
        # With h the growth of log alpha/sigma: 1 / (1 - exp(-h)) - 1 / h, in [0, 1] also for steps into noise.
        h = (gamma - target) / 2
        small = h.abs() < 1e-3
        safe = h.masked_fill(small, 1.0)
        return torch.where(small, 0.5 + h / 12, -1 / torch.expm1(-safe) - 1 / safe)

    def ancestral(self, z: Tensor, mean: Tensor, gamma: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Draw z at `target` < `gamma` from its law given z and the clean embedding, with normal `noise` (..., E)."""
        fresh = -torch.expm1(target - gamma)
        keep = (log_alpha(target) - log_alpha(gamma) + target - gamma).exp()
        spread = log_sigma(target).exp() * fresh.sqrt()
        return (
            _wide(keep, z) * z + _wide(log_alpha(target).exp() * fresh, z) * mean + _wide(spread, z) * noise
        )

    def renoise(self, z: Tensor, gamma: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Draw z at `target` >= `gamma` from its law given z, with standard normal `noise` (..., E)."""
        keep = (log_alpha(target) - log_alpha(gamma)).exp()
        spread = log_sigma(target).exp() * (-torch.expm1(gamma - target)).sqrt()
        return _wide(keep, z) * z + _wide(spread, z) * noise


@final
@dataclass(frozen=True, eq=False)
class Informed:
    """A network that is told what its noisy token alone says: its logits are added to the evidence.

    So it learns the context only, and is right from the start where there is little noise (LangFlow, arXiv 2604.11748).
    """

    network: GaussianDenoiser
    process: Gaussian

    def __call__(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        """Return logits (B, L, K) as a `GaussianDenoiser`."""
        logits = self.network(noisy, gamma, belief)
        return logits + self.process.evidence(noisy, gamma.expand(noisy.shape[:-1])).to(logits.dtype)


@final
@dataclass(frozen=True, eq=False)
class Reconsidered:
    """A denoiser whose belief is its own first answer, as in training: two forwards, and a function of the noise alone.

    So bounds and flows of self-conditioned networks are those of this denoiser, without approximation.
    """

    denoiser: GaussianDenoiser

    def __call__(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        """Return logits (B, L, K) as a `GaussianDenoiser`; a belief that is given is not looked at."""
        return self.denoiser(noisy, gamma, self.denoiser(noisy, gamma).softmax(-1))


def log_alpha(gamma: Tensor) -> Tensor:
    """Return the logarithm of the signal's level."""
    return -F.softplus(gamma) / 2


def log_sigma(gamma: Tensor) -> Tensor:
    """Return the logarithm of the noise's level."""
    return -F.softplus(-gamma) / 2


def _in_full(tensor: Tensor) -> torch.autocast:
    """Keep a product in the precision of its factors: signal-to-noise ratios magnify whatever is rounded."""
    return torch.autocast(tensor.device.type, enabled=False)


def _gain(gamma: Tensor, target: Tensor) -> Tensor:
    """Return alpha_target (1 - exp((target - gamma) / 2)), what a flow step takes of the mean."""
    return -log_alpha(target).exp() * torch.expm1((target - gamma) / 2)


def _wide(level: Tensor, z: Tensor) -> Tensor:
    """Give a level of each token the embeddings' axis and dtype; a level of all tokens stays a scalar."""
    return (level[..., None] if level.ndim else level).to(z.dtype)
