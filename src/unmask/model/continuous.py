"""What a continuous model has besides its backbone: token vectors, their way into it, and the schedule of the noise."""

import math
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unmask.diffusion.gaussian import Gaussian
from unmask.diffusion.gaussian_schedule import GAUSSIAN_SCHEDULES, GaussianSchedule
from unmask.errors import CheckpointError

GAUSSIAN: Final = "gaussian"
"""The `process` on the card of a continuous model."""

WEIGHTS_FILE = "continuous.safetensors"

_SPREAD = 0.02


class TokenVectors(nn.Module):
    """The vectors (K, E) that K tokens become, how frequent tokens are, the noise's schedule, and a map to width D.

    Vectors have unit length whatever `table` holds, for nothing else keeps them from growing out of the noise. Beside
    the map of a vector the backbone gets the embedding that the vector alone lets expect, which for a token that is
    given is its own: it need not learn again what a vector means. Given tokens are told from noisy ones by a flag too.
    All of it stays float32.
    """

    def __init__(self, num_tokens: int, size: int, hidden_size: int, schedule: GaussianSchedule) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_tokens, size))
        self.up = nn.Linear(size, hidden_size)
        self.flag = nn.Embedding(2, hidden_size)
        self.prior = nn.Parameter(torch.zeros(num_tokens))
        self.schedule = schedule

    @classmethod
    def initialise(
        cls,
        num_tokens: int,
        size: int,
        hidden_size: int,
        schedule: GaussianSchedule,
        generator: torch.Generator,
    ) -> "TokenVectors":
        """Return vectors of random directions, and a map that is at first not much stronger than embeddings are.

        All tokens are as frequent as each other until `prior`, (K,) log-probabilities up to a constant, says otherwise.
        """
        vectors = cls(num_tokens, size, hidden_size, schedule)
        with torch.no_grad():
            vectors.table.normal_(generator=generator)
            vectors.up.weight.normal_(0.0, _SPREAD / math.sqrt(size), generator=generator)
            vectors.up.bias.zero_()
            vectors.flag.weight.normal_(0.0, _SPREAD, generator=generator)
        return vectors

    def process(self) -> Gaussian:
        """Return the noise on the vectors as they are now; differentiable in the table and the schedule."""
        return Gaussian(F.normalize(self.table, dim=-1), self.schedule)

    def alone(self, noisy: Tensor, gamma: Tensor) -> Tensor:
        """Return what each noisy vector (..., E) says of its token by itself: (..., K) probabilities.

        In training no gradient goes this way, which would cost as much as a layer.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            return (self.process().evidence(noisy, gamma) + self.prior).softmax(-1)

    def forward(self, noisy: Tensor, gamma: Tensor, embeddings: Tensor) -> Tensor:
        """(..., E) noisy vectors at gammas (...), and the backbone's (at least K, D) embeddings -> (..., D).

        At the schedule's lowest gamma a vector is given.
        """
        low, _ = self.schedule.ends()
        expected = self.alone(noisy, gamma).to(embeddings.dtype) @ embeddings[: len(self.table)]
        return self.up(noisy) + self.flag((gamma > low).long()) + expected  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Write the weights to `folder`; raise OSError when it cannot be written."""
        (folder / WEIGHTS_FILE).write_bytes(save(self.state_dict()))

    @classmethod
    def load(cls, folder: Path, hidden_size: int, schedule: str) -> "TokenVectors":
        """Return what `save` wrote, its schedule named as on the card; CheckpointError for a file broken or missing."""
        path = folder / WEIGHTS_FILE
        try:
            state = load_file(path)
            num_tokens, size = state["table"].shape
            vectors = cls(num_tokens, size, hidden_size, GAUSSIAN_SCHEDULES.parse(schedule))
            vectors.load_state_dict(state)
        except (SafetensorError, RuntimeError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit the model: {error}", "fetch it again") from error
        return vectors.requires_grad_(False).eval()
