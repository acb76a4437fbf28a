"""Rules: which open positions of a canvas to commit after a forward."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unmask.decoding.candidates import Keys
from unmask.errors import UsageError
from unmask.registry import Registry
from unmask.rng import Stream


@dataclass(frozen=True)
class View:
    """What a rule may know about B canvases of L positions.

    `open`: (B, L) bool. `confidence`, `entropy`, `margin`: (B, L), see `Candidates`; void where not open.
    `positions`: (B, L) int64 places in the sequence. `seeds`, `steps`: keys of each canvas's own noise.
    `steps_left`: denoise forwards that each canvas may still use, this one included; `None` without a budget.
    `changes`: (B, L, H) divergences of each law from the one before it, see `Drift`, for a rule of memory H.
    """

    open: Tensor
    confidence: Tensor
    entropy: Tensor
    margin: Tensor
    positions: Tensor
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    steps_left: tuple[int | None, ...]
    changes: Tensor

    def noise(self) -> Tensor:
        """Return uniforms keyed by (seed, position, step), never by batch row: (B, L) float64."""
        return Keys(self.seeds, self.positions, self.steps).noise(Stream.ORDER)

    def num_required(self) -> Tensor:
        """Return how many positions must be committed now: (B,); one, or the budget's share."""
        counts = self.open.sum(-1).tolist()
        pairs = zip(counts, self.steps_left, strict=True)
        return torch.tensor([-(-count // left) if left else min(count, 1) for count, left in pairs])


class Rule(ABC):
    """A choice of positions. Rules need not care for progress or budgets: `choose` adds what is missing."""

    @property
    def memory(self) -> int:
        """How many of the last `View.changes` it looks at; keeping them costs a copy of the laws."""
        return 0

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
        _require_count("top-k", "k", self.k)

    def priority(self, view: View) -> Tensor:
        return view.confidence

    def select(self, view: View) -> Tensor:
        return leading(view.confidence, view.open, _counts(view, self.k))


@RULES.register("factor")
@final
@dataclass(frozen=True)
class Factor(Rule):
    """Commit the `n` most confident positions, n the greatest with ``(n + 1) (1 - confidence_n) < factor``.

    Up to factor 1 the most probable tokens are then also the most probable together (Wu et al. 2025, Fast-dLLM,
    arXiv 2505.22618, theorem 1).
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        _require_bound("factor", "factor", self.factor)

    def priority(self, view: View) -> Tensor:
        return view.confidence

    def select(self, view: View) -> Tensor:
        ordered = (
            view.confidence.double().masked_fill(~view.open, -torch.inf).sort(-1, descending=True).values
        )
        sizes = torch.arange(2, view.open.shape[-1] + 2)
        # The left-hand side grows along the order, so those that satisfy it come first.
        count = (sizes * (1 - ordered) < self.factor).sum(-1)
        return leading(view.confidence, view.open, count)


@RULES.register("klass")
@final
@dataclass(frozen=True)
class Klass(Rule):
    """Commit every position of confidence above `tau` whose law moved less than `bound` nats in each of `n` forwards.

    Kim et al. 2025, KLASS, arXiv 2511.05664. The first forwards of a canvas, which have no past, select nothing.
    """

    tau: float = 0.9
    bound: float = 0.01
    n: int = 2

    def __post_init__(self) -> None:
        _require_bound("klass", "tau", self.tau)
        _require_bound("klass", "bound", self.bound)
        _require_count("klass", "n", self.n)

    @property
    def memory(self) -> int:
        return self.n

    def priority(self, view: View) -> Tensor:
        return view.confidence

    def select(self, view: View) -> Tensor:
        steady = (view.changes[..., : self.n] < self.bound).all(-1)
        return steady & (view.confidence > self.tau)


@RULES.register("spaced")
@final
@dataclass(frozen=True)
class Spaced(Rule):
    """Commit far-apart positions first, in batches that grow by `growth`; neither law nor token matters.

    The canvas is halved again and again: its first position, the middle, the quarters. With growth 2 each batch is
    one such level, and a Markov chain of L tokens takes ``ceil(log2 L) + 1`` forwards without any error (dilated
    unmasking, arXiv 2506.19037; spaced increasing batches, arXiv 2608.25505).
    """

    growth: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.growth) and self.growth > 1):
            raise UsageError(f"rule 'spaced': growth={self.growth!r} must be above 1 and finite")

    def priority(self, view: View) -> Tensor:
        return -_halving_order(view.open.shape[-1]).double().expand(view.open.shape)

    def select(self, view: View) -> Tensor:
        order, edges = _halving_order(view.open.shape[-1]), [0]
        while edges[-1] <= int(order.max()):
            edges.append(max(edges[-1] + 1, int(self.growth * edges[-1])))
        batch = torch.bucketize(order, torch.tensor(edges), right=True)
        return batch == torch.where(view.open, batch, len(edges)).amin(-1, keepdim=True)


def _halving_order(length: int) -> Tensor:
    """Return each column's place in the order of repeated halving, its number with the bits reversed: (L,)."""
    width = (length - 1).bit_length()
    column = torch.arange(length)
    return sum((column >> bit & 1) << (width - 1 - bit) for bit in range(width)) + torch.zeros_like(column)


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
        _require_count("margin", "k", self.k)

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
        _require_count("random", "k", self.k)

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
        _require_count("left-to-right", "k", self.k)

    def priority(self, view: View) -> Tensor:
        return -view.positions.double()

    def select(self, view: View) -> Tensor:
        return leading(self.priority(view), view.open, _counts(view, self.k))


def _counts(view: View, k: int) -> Tensor:
    return torch.full((len(view.open),), k)


def _require_bound(rule: str, field: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"rule {rule!r}: {field}={value!r} must be 0 or more and finite")


def _require_count(rule: str, field: str, value: int) -> None:
    if not (isinstance(value, int) and value >= 1):
        raise UsageError(f"rule {rule!r}: {field}={value!r} must be a whole number of at least 1")
