"""What the trainer minimises: sums over tokens that a global count turns into means.

A loss is the sum of its terms over all scored tokens of a step, whichever process and forward they went through,
divided by the number of those tokens. A mean of means would weigh a token by the length of its batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unmask.training.batches import Batch
from unmask.training.parallel import Workers


class LossSum(NamedTuple):
    """One loss on one batch: `total` a differentiable scalar in nats, the sum over `num_tokens` scored tokens.

    `weight` is its share in what is optimised. All losses of an objective count the same tokens. A tuple, for
    the library that shards a model looks for the tensors of an output in tuples, lists and dicts only.
    """

    total: Tensor
    num_tokens: int
    weight: float = 1.0


def optimised(losses: Mapping[str, LossSum]) -> Tensor:
    """Return the sum of an objective's losses by their weights, over its scored tokens."""
    return torch.stack([loss.weight * loss.total for loss in losses.values()]).sum()


class TrainingObjective(Protocol):
    """All that the trainer knows of a model: its losses, by name, on a batch."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Mapping[str, LossSum]:
        """Score a batch; all noise comes from `generator`, which is on the batch's device."""


@dataclass(frozen=True)
class LossMean:
    """Means per scored token over all processes, in nats: of what is optimised, and of each loss by name."""

    optimised: float
    losses: dict[str, float]
    num_tokens: int

    @classmethod
    def of(cls, parts: Sequence[Mapping[str, LossSum]], workers: Workers) -> "LossMean":
        """Join the loss sums of this process's forwards, one at least, with those of the other processes."""
        weights = {name: part.weight for name, part in sorted(parts[0].items())}
        totals = [sum(part[name].total.item() for part in parts) for name in weights]
        counts = [sum(part[name].num_tokens for part in parts) for name in weights]
        sums = workers.sum([*totals, *counts])
        num_tokens = {int(count) for count in sums[len(weights) :]}
        if len(num_tokens) > 1:
            raise ValueError(
                f"the losses {', '.join(weights)} count {sorted(num_tokens)} tokens: all must count the same"
            )
        (count,) = num_tokens
        losses = {name: total / count for name, total in zip(weights, sums, strict=False)}
        return cls(sum(weights[name] * loss for name, loss in losses.items()), losses, count)
