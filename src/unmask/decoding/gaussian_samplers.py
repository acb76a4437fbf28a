"""The samplers of Gaussian noise: Euler, Heun, multistep, churn, ancestral, restart."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from unmask.diffusion.gaussian import Gaussian
from unmask.errors import UsageError
from unmask.registry import Registry

Predict = Callable[[Tensor, Tensor], Tensor]
"""One forward: noisy embeddings (B, L, E) at a scalar gamma -> the embeddings (B, L, E) that the denoiser expects."""


class Seen(NamedTuple):
    """What a forward said: the expected embeddings (B, L, E), at a scalar gamma."""

    mean: Tensor
    gamma: Tensor


@dataclass(frozen=True)
class GaussianMove:
    """From `gamma` to `target` < gamma, scalars.

    `noise`: (B, L, E) standard normal, to be used once. `last`: the forward before this move, if there was one.
    """

    process: Gaussian
    z: Tensor
    gamma: Tensor
    target: Tensor
    predict: Predict
    noise: Callable[[], Tensor]
    last: Seen | None


class GaussianSampler(ABC):
    """A way from noise to embeddings, through gammas of evenly spaced times."""

    def num_moves(self, steps: int) -> int:
        """Return how many moves can be made with `steps` forwards; one each here."""
        return steps

    @abstractmethod
    def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
        """Return z at the move's target, after one forward at least; `forwards` are left, this move's included."""


GAUSSIAN_SAMPLERS: Registry[type[GaussianSampler]] = Registry(
    "Gaussian sampler", group="unmask.gaussian_samplers"
)
"""Sampler classes by the name that `GAUSSIAN_SAMPLERS.parse` knows them by: dataclasses of numbers with defaults."""


@GAUSSIAN_SAMPLERS.register("euler")
@final
@dataclass(frozen=True)
class Euler(GaussianSampler):
    """Follow the probability flow straight on (DDIM; EDM, arXiv 2206.00364): all chance lies in the first noise."""

    def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
        return move.process.flow(move.z, move.predict(move.z, move.gamma), move.gamma, move.target)


@GAUSSIAN_SAMPLERS.register("heun")
@final
@dataclass(frozen=True)
class Heun(GaussianSampler):
    """Look where an Euler step leads, and take it again with both means: second order, two forwards a move.

    The means are weighed as if they changed linearly in gamma, so that long moves keep to what was predicted
    (an exponential integrator: Lu et al. 2022, DPM-Solver, arXiv 2206.00927). A last forward that is left alone makes
    an Euler step.
    """

    def num_moves(self, steps: int) -> int:
        return (steps + 1) // 2

    def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
        process, gamma, target = move.process, move.gamma, move.target
        here = move.predict(move.z, gamma)
        ahead = process.flow(move.z, here, gamma, target)
        if forwards == 1:
            return ahead
        there = move.predict(ahead, target)
        lean = process.lean(gamma, target).to(here.dtype)
        return process.flow(move.z, torch.lerp(here, there, lean), gamma, target)


@GAUSSIAN_SAMPLERS.register("multistep")
@final
@dataclass(frozen=True)
class Multistep(GaussianSampler):
    """Draw the line through this mean and the last one further: second order, one forward a move.

    Lu et al. 2022, DPM-Solver++ (2M), arXiv 2211.01095, in gamma and with the exact solution for a linear mean.
    """

    def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
        process, gamma, target = move.process, move.gamma, move.target
        mean = here = move.predict(move.z, gamma)
        if move.last is not None:
            reach = (gamma - target) / (move.last.gamma - gamma) * process.lean(gamma, target)
            mean = here + reach.to(here.dtype) * (here - move.last.mean)
        return process.flow(move.z, mean, gamma, target)


@GAUSSIAN_SAMPLERS.register("churn")
@final
@dataclass(frozen=True)
class Churn(GaussianSampler):
    """Take a step back into fresh noise before every Euler step, so that earlier errors are forgotten.

    `share` of the move's length in gamma; 1 adds as much noise as ancestral sampling does, 0 none (the stochastic
    sampler of EDM, arXiv 2206.00364, with noise in proportion to the grid). The last forward, which tokens are drawn
    from, is made without.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < float("inf"):
            raise UsageError(f"sampler 'churn': share={self.share!r} must be 0 or more, and finite")

    def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
        process, gamma, target = move.process, move.gamma, move.target
        _, high = process.schedule.ends()
        share = self.share if forwards > 1 else 0.0
        back = torch.minimum(gamma + share * (gamma - target), high.to(gamma))
        z = process.renoise(move.z, gamma, back, move.noise())
        return process.flow(z, move.predict(z, back), back, target)


@GAUSSIAN_SAMPLERS.register("ancestral")
@final
@dataclass(frozen=True)
class GaussianAncestral(GaussianSampler):
    """Draw every next z from its law given this one and the predicted embedding, the generative model of the bound."""

    def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
        mean = move.predict(move.z, move.gamma)
        return move.process.ancestral(move.z, mean, move.gamma, move.target, move.noise())


@GAUSSIAN_SAMPLERS.register("restart")
@final
@dataclass(frozen=True)
class Restart(GaussianSampler):
    """Put the predicted embedding into fresh noise of the next level, and forget all else.

    For a student that names where the flow ends (objective `distill`), whose every prediction is a finished text: the
    sampler of consistency models (Song et al. 2023, arXiv 2303.01469).
    """

    def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
        return move.process.around(move.predict(move.z, move.gamma), move.target, move.noise())
