"""How much noise each row of a batch gets: draws of the time, or of the number of noised tokens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unmask.diffusion.masked import Masked
from unmask.diffusion.process import Process
from unmask.errors import UsageError
from unmask.registry import Registry


@dataclass(frozen=True)
class Noised:
    """Tokens after noise: `tokens` (B, L), `time` (B, L) float64, `trained` (B, L) bool: noised and scored, both.

    `weight` (B, L) float64, where there is one: the bound charges it times the cross-entropy, in the place of the
    process's integrand at `time`.
    """

    tokens: Tensor
    time: Tensor
    trained: Tensor
    weight: Tensor | None = None

    def at(self, index: Tensor) -> "Noised":
        """Return the tokens where `index` (B, L) is True: all fields (M,)."""
        weight = None if self.weight is None else self.weight[index]
        return Noised(self.tokens[index], self.time[index], self.trained[index], weight)


class TimeSampling(ABC):
    """A way to draw noise for rows. Rows are what gets one amount of noise: sequences, or blocks of them.

    The expected loss is the bound whichever is used; what differs is its variance.
    """

    @abstractmethod
    def noise(self, x0: Tensor, process: Process, generator: torch.Generator, *, trained: Tensor) -> Noised:
        """Noise the `trained` (B, L) positions of clean tokens (B, L); the others stay clean."""


TIMES: Registry[type[TimeSampling]] = Registry("time sampling", group="unmask.times")
"""Time samplings by name."""


@TIMES.register("independent")
@final
@dataclass(frozen=True)
class Independent(TimeSampling):
    """Draw each row's time from U(0, 1)."""

    def noise(self, x0: Tensor, process: Process, generator: torch.Generator, *, trained: Tensor) -> Noised:
        return _corrupt(x0, _uniform(len(x0), generator), process, generator, trained)


@TIMES.register("low-discrepancy")
@final
@dataclass(frozen=True)
class LowDiscrepancy(TimeSampling):
    """Draw one time from each of B equal intervals; each row's time is still U(0, 1)."""

    def noise(self, x0: Tensor, process: Process, generator: torch.Generator, *, trained: Tensor) -> Noised:
        return _corrupt(x0, stratified_times(len(x0), generator), process, generator, trained)


@TIMES.register("exact-count")
@final
@dataclass(frozen=True)
class ExactCount(TimeSampling):
    """Mask exactly k of a row's n trained tokens, k ~ U{1..n} in strata over rows; the weight is n / k.

    The masked bound with time integrated out (Ou et al. 2024, RADD, arXiv 2406.03736), whatever the
    schedule: the variance of the number of masks is gone. For masked noise only.
    """

    def noise(self, x0: Tensor, process: Process, generator: torch.Generator, *, trained: Tensor) -> Noised:
        if not isinstance(process, Masked):
            name = type(process).__name__
            raise UsageError(
                f"exact-count counts masks, and {name} is not masked noise", "use low-discrepancy"
            )
        size = trained.sum(-1).clamp_min(1)
        share = stratified_times(len(x0), generator).to(x0.device)
        count = (share * size).long() + 1
        order = torch.rand(x0.shape, dtype=torch.float64, generator=generator, device=generator.device)
        rank = order.to(x0.device).masked_fill(~trained, torch.inf).argsort(-1).argsort(-1)
        masked = (rank < count[:, None]) & trained
        time = process.schedule.time_of(1 - count / size.double())
        tokens = torch.where(masked, process.mask_token_id or 0, x0)
        return Noised(tokens, _spread(time, trained), trained, _spread(size / count.double(), trained))


def _corrupt(
    x0: Tensor, time: Tensor, process: Process, generator: torch.Generator, trained: Tensor
) -> Noised:
    time = _spread(time.to(x0.device), trained)
    return Noised(process.corrupt(x0, time, generator).where(trained, x0), time, trained)


def _spread(values: Tensor, trained: Tensor) -> Tensor:
    return values[:, None].expand(trained.shape)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=generator, device=generator.device)


def stratified_times(count: int, generator: torch.Generator) -> Tensor:
    """Return a time from each of `count` equal intervals, at one common offset, in random order: (count,) float64.

    Each one is U(0, 1) (Kingma et al. 2021, VDM, arXiv 2107.00630).
    """
    order = torch.randperm(count, generator=generator, device=generator.device)
    return (order + _uniform(1, generator)) / count
