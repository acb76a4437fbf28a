"""What a training run trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from unmask.training.loss import TrainingObjective


@dataclass(frozen=True)
class Recipe:
    """A model and what is done with it. All its parameters that require a gradient are trained; `objective` runs it.

    `sample` returns a text that the model writes, given the number of steps done. `export` writes a folder that can be
    loaded, from whole weights in main memory by their names in `model`.
    """

    model: nn.Module
    objective: TrainingObjective
    sample: Callable[[int], str]
    export: Callable[[Mapping[str, Tensor], Path], None]
