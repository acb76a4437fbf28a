"""Averages over texts, with their standard errors: how every number of a report is stated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Average:
    """An amount per unit over a number of samples; a single sample has no standard error."""

    mean: float
    standard_error: float | None
    num_samples: int

    def scaled(self, factor: float) -> "Average":
        """Express the average in other units."""
        error = None if self.standard_error is None else self.standard_error * abs(factor)
        return Average(self.mean * factor, error, self.num_samples)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2f}")


def average(
    amounts: Sequence[float], sizes: Sequence[float], problems: Sequence[str] | None = None
) -> Average | None:
    """Return the ratio of two totals, say tokens per forward, over samples that have some of both.

    The samples (prompts, windows of text) are what is drawn independently, so the standard error is theirs, by the
    delta method (Cochran 1977, Sampling Techniques, eq. 6.13 without the finite population). With `problems` samples of
    one problem count as one. None where the sizes are all zero.
    """
    amount, size = np.asarray(amounts, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if problems is not None:
        places = np.unique(problems, return_inverse=True)[1]
        amount, size = (np.bincount(places, each).astype(np.float64) for each in (amount, size))
    amount, size = amount[size > 0], size[size > 0]
    count = len(size)
    if not count:
        return None
    ratio = amount.sum() / size.sum()
    if count == 1:
        return Average(float(ratio), None, 1)
    spread = np.square(amount - ratio * size).sum() * count / (count - 1)
    return Average(float(ratio), float(np.sqrt(spread) / size.sum()), count)
