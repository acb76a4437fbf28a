"""Processes: what noise does to a token, how it is undone, and what the bound charges for it."""

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass, field, fields, make_dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmask.diffusion.denoising import Prediction
from unmask.diffusion.schedule import Schedule
from unmask.errors import UsageError
from unmask.registry import Registry


@dataclass(frozen=True)
class Process(ABC):
    """Noise that acts on every token by itself: x_0 clean, x_1 drawn from the prior.

    Token tensors have any shape `...`; times broadcast against them, so every token may have its own. Clean tokens
    are 0..K-1 with K = `vocab_size`, states are 0..S-1 with S = `num_states`. A `prediction` holds normalised
    log-probabilities (..., K) of the clean token; results have its dtype. Times and all that follows from them alone
    are float64. The negative evidence lower bound of x_0, in nats, is

        prior_nll(x_0)  +  mean over t ~ U(0, 1) of nll(., x_0, x_t, t)  +  cross_entropy(., x_0, x_0', 0)

    with x_t and x_0' drawn by `corrupt` at times t and 0. The first and the last term vanish for schedules that reach
    0 and 1.
    """

    vocab_size: int
    mask_token_id: int | None
    schedule: Schedule

    prediction: ClassVar[Prediction]
    """The kind of prediction that `posterior` and `nll` expect; `convert` makes one of the other."""
    masks: ClassVar[bool]
    """Whether there is a mask token."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.vocab_size < 2:
            raise UsageError(f"{name}: vocab_size={self.vocab_size} must be at least 2")
        if self.masks and (self.mask_token_id is None or self.mask_token_id < 0):
            raise UsageError(f"{name}: mask_token_id={self.mask_token_id} must be a token id")
        if not self.masks and self.mask_token_id is not None:
            raise UsageError(
                f"{name}: mask_token_id={self.mask_token_id}, but there is no mask token", "give None"
            )

    @property
    def num_states(self) -> int:
        """S: the states of a noisy token, the mask token included."""
        return max(self.vocab_size, (self.mask_token_id or 0) + 1)

    def is_masked(self, tokens: Tensor) -> Tensor:
        """Return where tokens are the mask: (...) bool, False everywhere for a process without one."""
        return tokens.eq(-1 if self.mask_token_id is None else self.mask_token_id)

    def without_mask(self, logits: Tensor) -> Tensor:
        """Rule the mask out as a clean token, (..., K) logits, where its id is one of the vocabulary's."""
        mask = self.mask_token_id
        if mask is None or mask >= logits.shape[-1]:
            return logits
        return logits.index_fill(-1, torch.tensor(mask, device=logits.device), -torch.inf)

    @abstractmethod
    def prior(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw tokens of pure noise, on the generator's device."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x_t given x_0."""

    @abstractmethod
    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        """Return the law of x_t given x_0: (..., S) float64."""

    @abstractmethod
    def transition(self, xs: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Return the law of x_t given x_s, any state, for s <= t: (..., S) float64."""

    @abstractmethod
    def posterior(self, prediction: Tensor, xt: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Return the law of x_s given x_t for s < t: (..., S), the ancestral sampler's step."""

    @abstractmethod
    def nll(self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the integrand of the bound: (...), nats per unit of time."""

    @abstractmethod
    def cross_entropy(
        self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor, *, source: Prediction
    ) -> Tensor:
        """Return -log p(x_0 | x_t) in nats by a prediction of kind `source`: (...)."""

    @abstractmethod
    def prior_nll(self, x0: Tensor) -> Tensor:
        """Return the divergence of the law of x_1 given x_0 from the prior: (...) float64, nats."""

    @abstractmethod
    def convert(
        self, prediction: Tensor, xt: Tensor, t: Tensor, *, source: Prediction, target: Prediction
    ) -> Tensor:
        """Turn a prediction of kind `source` into one of kind `target`: posterior ~ leave-one-out * q(x_t | x)."""

    def likelihood(self, xt: Tensor, t: Tensor) -> Tensor:
        """Return q(x_t | x) for every clean token x: (..., K) float64. For small K: it makes (..., K, S)."""
        clean = torch.arange(self.vocab_size, device=xt.device).expand(*xt.shape, -1)
        laws = self.marginal(clean, t.expand(xt.shape)[..., None])
        return laws.gather(-1, xt[..., None, None].expand(*clean.shape, 1))[..., 0]


PROCESSES: Registry[type[Process]] = Registry("process", group="unmask.processes")
"""Process classes by name: dataclasses whose fields after the three of `Process` are numbers with defaults."""


def build_process(text: str, vocab_size: int, mask_token_id: int | None, schedule: Schedule) -> Process:
    """Build what a text such as ``masked`` or ``hybrid:0.2`` means; commas part the class's own numbers.

    `mask_token_id`: for the processes that mask. Raises UsageError for an unknown name and for numbers that are
    malformed, too many or out of range.
    """
    name = text.partition(":")[0]
    kind = PROCESSES.get(name)
    own = [
        (item.name, item.type, field(default=item.default)) for item in fields(kind)[len(fields(Process)) :]
    ]
    numbers = Registry(PROCESSES.kind, group=PROCESSES.group, items={name: make_dataclass("Numbers", own)})
    mask_token_id = mask_token_id if kind.masks else None
    return kind(vocab_size, mask_token_id, schedule, *astuple(numbers.parse(text)))
