"""Guidance of one generation: a denoiser led away from what it says without its prompt, or without its belief."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unmask.diffusion.denoising import DenoiserFunction
from unmask.errors import UsageError

Aid = Literal["prompt", "self"]
AIDS: tuple[Aid, ...] = get_args(Aid)


@dataclass(frozen=True)
class Guided:
    """A denoiser led by two: log p = weight log p_conditional + (1 - weight) log p_unconditional, normalised.

    Classifier-free guidance on the law of the clean token (Schiff et al. 2024, arXiv 2412.10193; Nie et al. 2025,
    arXiv 2502.09992). Weight 1 is the conditional denoiser, 0 the unconditional one. What either rules out stays ruled
    out. Each call is two forwards of a model. The same leads denoisers of noisy embeddings, which are told gamma; and a
    denoiser led by itself without its belief is guided by self-conditioning.
    """

    conditional: DenoiserFunction
    unconditional: DenoiserFunction
    weight: float

    def __call__(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None, /) -> Tensor:
        """Return logits (B, L, K) of noisy `tokens`; both denoisers are given the same."""
        wanted = self.conditional(tokens, time, belief).log_softmax(-1)
        plain = self.unconditional(tokens, time, belief).log_softmax(-1)
        is_possible = (wanted > -torch.inf) & (plain > -torch.inf)
        return (self.weight * wanted + (1 - self.weight) * plain).where(is_possible, -torch.inf)


@dataclass(frozen=True)
class Guidance:
    """log p = log p_with + weight (log p_with - log p_without), normalised, at every place and in every forward.

    With and without what is given around the text, which is pure noise in its second forward (classifier-free
    guidance), or, `by` "self", the belief of the forward before (self-guidance).
    """

    weight: float
    by: Aid = "prompt"

    def __post_init__(self) -> None:
        if self.by not in AIDS:
            raise UsageError(f"guidance by {self.by!r} is unknown", f"choose from {', '.join(AIDS)}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UsageError(f"guidance: the weight {self.weight} must be above 0 and finite")

    def lead(self, denoiser: DenoiserFunction, given: Tensor, noise: Tensor, level: float) -> Guided:
        """Return a denoiser of two forwards a call.

        `given` (B, L) bool: where the prompt is. `noise`: (B, L) tokens or (B, L, E) vectors that hide it, which the
        denoiser is told are at time, or gamma, `level`.
        """
        other = (
            _Alone(denoiser)
            if self.by == "self"
            else _Unprompted(denoiser, given.to(noise.device), noise, level)
        )
        return Guided(denoiser, other, 1 + self.weight)


def read_guidance(value: Guidance | str | float | None) -> Guidance | None:
    """Return what a number, or a text such as ``1.5`` or ``self:1.5``, asks for; a weight of 0 asks for nothing."""
    if value is None or isinstance(value, Guidance):
        return value
    by, _, number = str(value).rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        raise UsageError(
            f"guidance {value!r} is not a weight", "write a number, say 1.5, or self:1.5"
        ) from None
    named = next((aid for aid in AIDS if aid == by), None) if by else "prompt"
    if named is None:
        raise UsageError(f"guidance by {by!r} is unknown", f"choose from {', '.join(AIDS)}")
    return None if weight == 0 else Guidance(weight, named)


@dataclass(frozen=True)
class _Alone:
    """A denoiser without its belief."""

    denoiser: DenoiserFunction

    def __call__(self, noisy: Tensor, time: Tensor, belief: Tensor | None = None, /) -> Tensor:
        return self.denoiser(noisy, time)


@dataclass(frozen=True)
class _Unprompted:
    """A denoiser for which the given places are noise, and believed to be nothing."""

    denoiser: DenoiserFunction
    given: Tensor
    noise: Tensor
    level: float

    def __call__(self, noisy: Tensor, time: Tensor, belief: Tensor | None = None, /) -> Tensor:
        deep = self.given[..., None]
        return self.denoiser(
            torch.where(self.given if noisy.dim() == 2 else deep, self.noise, noisy),
            time.expand(self.given.shape).masked_fill(self.given.to(time.device), self.level),
            None if belief is None else belief.masked_fill(deep.to(belief.device), 0.0),
        )
