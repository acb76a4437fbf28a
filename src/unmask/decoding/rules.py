"""Rules: which open positions of a canvas to commit after a forward."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unmask.errors import UsageError
from unmask.registry import Registry
from unmask.rng import Stream, uniform


@dataclass(frozen=True)
class View:
    """What a rule may know about B canvases of L positions.

    `open`: (B, L) bool. `confidence`, `entropy`, `margin`: (B, L), see `Candidates`; void where not open.
    `positions`: (B, L) int64 places in the sequence. `seeds`, `steps`: keys of each canvas's own noise.
    `steps_left`: denoise forwards that each canvas may still use, this one included; `None` without a budget.
    """

    open: Tensor
    confidence: Tensor
    entropy: Tensor
    margin: Tensor
    positions: Tensor
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    steps_left: tuple[int | None, ...]

    def noise(self) -> Tensor:
        """Return uniforms keyed by (seed, position, step), never by batch row: (B, L) float64."""
        rows = zip(self.seeds, self.steps, self.positions.tolist(), strict=True)
        values = [
            [uniform(seed, place, step, Stream.ORDER) for place in places] for seed, step, places in rows
        ]
        return torch.tensor(values, dtype=torch.float64)

    def num_required(self) -> Tensor:
        """Return how many positions must be committed now: (B,); one, or the budget's share."""
        counts = self.open.sum(-1).tolist()
        pairs = zip(counts, self.steps_left, strict=True)
        return torch.tensor([-(-count // left) if left else min(count, 1) for count, left in pairs])


class Rule(ABC):
    """A choice of positions. Rules need not care for progress or budgets: `choose` adds what is missing."""

    @abstractmethod
    def priority(self, view: View) -> Tensor:
        """Return how much each position deserves to be committed next: (B, L) floats, larger first."""

    @abstractmethod
    def select(self, view: View) -> Tensor:
        """Return which positions to commit now: (B, L) bool; decided positions do not count."""


RULES: Registry[type[Rule]] = Registry("rule", group="unmask.rules")
"""Rule classes by the name that `RULES.parse` knows them by; each is a dataclass of numbers with defaults."""


def choose(rule: Rule, view: View) -> Tensor:
    """Return what to commit now: (B, L) bool, open positions only.

    It is the rule's selection, filled up in the rule's order to what progress and the step budget require.
    Raises TypeError when the rule does not return a boolean tensor of the view's shape.
    """
    selected = rule.select(view)
    if selected.dtype != torch.bool or selected.shape != view.open.shape:
        shape, wanted = tuple(selected.shape), tuple(view.open.shape)
        raise TypeError(
            f"{rule} selected {selected.dtype} of shape {shape}; it must be torch.bool of shape {wanted}"
        )
    selected = selected & view.open
    missing = view.num_required() - selected.sum(-1)
    return selected | leading(rule.priority(view), view.open & ~selected, missing)


def leading(priority: Tensor, eligible: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` (B,) eligible (B, L) positions of highest `priority` (B, L); ties go to the left."""
    order = priority.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, (~eligible).gather(-1, order).long().argsort(dim=-1, stable=True))
    rank = order.argsort(dim=-1)
    return (rank < counts[:, None]) & eligible


@RULES.register("threshold")
@final
@dataclass(frozen=True)
class Threshold(Rule):
    """Commit every position whose confidence exceeds `tau` (Wu et al. 2025, Fast-dLLM, arXiv 2505.22618)."""

    tau: float = 0.9

    def __post_init__(self) -> None:
        _require_bound("threshold", "tau", self.tau)

    def priority(self, view: View) -> Tensor:
        return view.confidence

    def select(self, view: View) -> Tensor:
        return view.confidence > self.tau


@RULES.register("top-k")
@final
@dataclass(frozen=True)
class TopK(Rule):
    """Commit the `k` most confident positions (Chang et al. 2022, MaskGIT, arXiv 2202.04200)."""

    k: int = 1

    def __post_init__(self) -> None:
        _require_count("top-k", self.k)

    def priority(self, view: View) -> Tensor:
        return view.confidence

    def select(self, view: View) -> Tensor:
        return leading(view.confidence, view.open, _counts(view, self.k))


@RULES.register("entropy-bound")
@final
@dataclass(frozen=True)
class EntropyBound(Rule):
    """Commit the most certain positions while sum H - max H stays within `gamma` nats.

    The sum without its largest term bounds what is lost by treating the positions as independent
    (Ben-Hamu et al. 2025, EB-Sampler, arXiv 2505.24857).
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        _require_bound("entropy-bound", "gamma", self.gamma)

    def priority(self, view: View) -> Tensor:
        return -view.entropy

    def select(self, view: View) -> Tensor:
        ordered, order = view.entropy.double().masked_fill(~view.open, torch.inf).sort(dim=-1, stable=True)
        # In ascending order the largest entropy of a prefix is its last: the bound is the sum before it.
        before = ordered.cumsum(-1).roll(1, dims=-1)
        before[:, 0] = 0.0
        return torch.zeros_like(view.open).scatter_(-1, order, before <= self.gamma)


@RULES.register("margin")
@final
@dataclass(frozen=True)
class Margin(Rule):
    """Commit the `k` positions of largest top-two gap (Kim et al. 2025, arXiv 2502.06768)."""

    k: int = 1

    def __post_init__(self) -> None:
        _require_count("margin", self.k)

    def priority(self, view: View) -> Tensor:
        return view.margin

    def select(self, view: View) -> Tensor:
        return leading(view.margin, view.open, _counts(view, self.k))


@RULES.register("random")
@final
@dataclass(frozen=True)
class Random(Rule):
    """Commit `k` positions by keyed noise: the order of ancestral sampling."""

    k: int = 1

    def __post_init__(self) -> None:
        _require_count("random", self.k)

    def priority(self, view: View) -> Tensor:
        return view.noise()

    def select(self, view: View) -> Tensor:
        return leading(self.priority(view), view.open, _counts(view, self.k))


@RULES.register("left-to-right")
@final
@dataclass(frozen=True)
class LeftToRight(Rule):
    """Commit the first `k` open positions."""

    k: int = 1

    def __post_init__(self) -> None:
        _require_count("left-to-right", self.k)

    def priority(self, view: View) -> Tensor:
        return -view.positions.double()

    def select(self, view: View) -> Tensor:
        return leading(self.priority(view), view.open, _counts(view, self.k))


def _counts(view: View, k: int) -> Tensor:
    return torch.full((len(view.open),), k)


def _require_bound(rule: str, field: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"rule {rule!r}: {field}={value!r} must be 0 or more and finite")


def _require_count(rule: str, k: int) -> None:
    if not (isinstance(k, int) and k >= 1):
        raise UsageError(f"rule {rule!r}: k={k!r} must be a whole number of at least 1")
