"""What a denoiser may know besides the noisy tokens: the time, and what it believed a step ago."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unmask.errors import CheckpointError

WEIGHTS_FILE = "conditioning.safetensors"

_NUM_FREQUENCIES = 64
_MAX_FREQUENCY = 1000.0


class TimePort(nn.Module):
    """Adds a function of time t in [0, 1] to the embeddings of noisy tokens: sines and cosines, then a small MLP.

    It starts at zero. Added to the input and not to every layer, so that the backbone stays what others can load.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(2 * _NUM_FREQUENCIES, hidden_size)
        self.down = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, time: Tensor) -> Tensor:
        """(...) times -> (..., D)."""
        exponents = torch.linspace(0, math.log(_MAX_FREQUENCY), _NUM_FREQUENCIES, device=time.device)
        angles = time[..., None].float() * exponents.exp()
        features = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(features)))  # type: ignore[no-any-return]


class BeliefPort(nn.Module):
    """Adds the embedding that the last prediction expects: self-conditioning (Chen et al. 2022, arXiv 2208.04202).

    It starts at zero, so a network without a belief and one that has not learnt to use it agree.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.map = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.zeros_(self.map.weight)

    def forward(self, belief: Tensor, embeddings: Tensor) -> Tensor:
        """(..., K) probabilities and (at least K, D) token embeddings -> (..., D)."""
        expected = belief.to(embeddings.dtype) @ embeddings[: belief.shape[-1]]
        return self.map(expected)  # type: ignore[no-any-return]


class Conditioning(nn.Module):
    """The ports of one denoiser, each of which may be missing; they act on noisy tokens alone."""

    def __init__(self, hidden_size: int, *, time: bool, belief: bool) -> None:
        super().__init__()
        self.time = TimePort(hidden_size) if time else None
        self.belief = BeliefPort(hidden_size) if belief else None

    @classmethod
    def initialise(
        cls, hidden_size: int, generator: torch.Generator, *, time: bool, belief: bool
    ) -> "Conditioning":
        """Return ports that add nothing yet, their weights drawn from `generator`."""
        ports = cls(hidden_size, time=time, belief=belief)
        if ports.time is not None:
            bound = 1 / math.sqrt(ports.time.up.in_features)
            with torch.no_grad():
                for parameter in ports.time.up.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
        return ports

    def forward(self, x: Tensor, time: Tensor, belief: Tensor | None, embeddings: Tensor) -> Tensor:
        """Return (..., D) embeddings of noisy tokens with what is known besides added.

        `time`: broadcasts to (...); `belief`: (..., K) probabilities, or `None` on the first step;
        `embeddings`: the (V, D) table.
        """
        if self.time is not None:
            x = x + self.time(time).to(x.dtype)
        if self.belief is not None and belief is not None:
            x = x + self.belief(belief, embeddings).to(x.dtype)
        return x

    def save(self, folder: Path) -> None:
        """Write the weights to `folder`; raise OSError when it cannot be written."""
        partial = folder / f"{WEIGHTS_FILE}.partial"
        partial.write_bytes(save(self.state_dict()))
        partial.replace(folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path, hidden_size: int) -> "Conditioning | None":
        """Return the ports stored in `folder`, `None` where there are none; CheckpointError for a broken file."""
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            return None
        try:
            state = load_file(path)
            ports = {name.partition(".")[0] for name in state}
            conditioning = cls(hidden_size, time="time" in ports, belief="belief" in ports)
            conditioning.load_state_dict(state)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CheckpointError(f"{path} does not fit the model: {error}", "fetch it again") from error
        return conditioning.requires_grad_(False).eval()
