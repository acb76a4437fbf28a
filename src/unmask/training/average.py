"""The exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """A running average of a model's parameters, in which the last ``1 / (1 - decay)`` steps or so count.

    Early on it forgets faster, ``min(decay, (1 + n) / (10 + n))`` after n updates: the random start is soon gone.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Draw the current weights in, after `num_updates` earlier times."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        for name, parameter in self.model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model run on the averaged weights; afterwards it has its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            current = parameter.clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(current)
