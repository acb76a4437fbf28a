"""The contract of samplers: what each forward of a denoiser does to a canvas of noise."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape, draw, sampling_law
from unmask.diffusion.denoising import Prediction
from unmask.diffusion.process import Process
from unmask.diffusion.schedule import Schedule
from unmask.errors import UsageError
from unmask.rng import Stream


class Move(NamedTuple):
    """One forward's way: from time `t` to time `s` <= t. A canvas that is before `t` is noised up to it first."""

    t: float
    s: float


@dataclass(frozen=True)
class Look:
    """What a sampler knows after a forward over B canvases of L positions.

    `tokens`: (B, L) what the denoiser saw. `time`: (B, 1) what it was told. `move`: where to go. `free`: (B, L) bool,
    the positions that are not given. `logits`: (B, L, K) of the clean tokens, the mask ruled out, of kind `kind`.
    `confidence`: (B, L) the probability each token had when it was written. `steady`: (B, L) for how many forwards the
    most probable token has not changed. `changes`: as in `View`. `steps_left`: forwards, this one included.
    """

    process: Process
    tokens: Tensor
    free: Tensor
    time: Tensor
    move: Move
    logits: Tensor
    kind: Prediction
    shape: Shape
    confidence: Tensor
    steady: Tensor
    changes: Tensor
    keys: Keys
    steps_left: int

    def predict(self, target: Prediction, *, temperature: float = 1.0) -> Tensor:
        """Return the shaped prediction as a law of kind `target`: (B, L, K) float64 log-probabilities.

        `temperature` multiplies the shape's. Shaping comes first, on the law that the denoiser was trained to give.
        """
        shape = replace(self.shape, temperature=self.shape.temperature * temperature)
        law = sampling_law(self.logits, shape).log()
        return self.process.convert(law, self.tokens, self.time, source=self.kind, target=target)

    def noise(self, stream: Stream) -> Tensor:
        """Return one of the independent uniforms of every position: (B, L) float64."""
        return self.keys.noise(stream).to(self.tokens.device)

    @property
    def next_time(self) -> Tensor:
        """The time to go to: (B, 1)."""
        return torch.full_like(self.time, self.move.s)


class Step(NamedTuple):
    """The canvases after a forward: (B, L) tokens; which of them are taken for noise; which rows (B,) are finished."""

    tokens: Tensor
    noisy: Tensor
    finished: Tensor


class Sampler(ABC):
    """A way from noise to text. Given positions never change, whatever a sampler returns there."""

    @property
    def memory(self) -> int:
        """How many of the last `Look.changes` it looks at; keeping them costs a copy of the laws."""
        return 0

    @abstractmethod
    def check(self, process: Process) -> None:
        """Raise UsageError, naming both, when the sampler does not fit the process."""

    def moves(self, steps: int, schedule: Schedule) -> list[Move]:
        """Return at most `steps` moves, one for each forward, from time 1 to time 0: even ones here."""
        return [Move((steps - step) / steps, (steps - step - 1) / steps) for step in range(steps)]

    def time(self, process: Process, noisy: Tensor, free: Tensor, move: Move) -> Tensor:
        """Return the time that the denoiser is told: (B, 1) float64; the move's here."""
        return torch.full((len(free), 1), move.t, dtype=torch.float64, device=free.device)

    @abstractmethod
    def step(self, look: Look) -> Step:
        """Return what becomes of the canvases."""


def require_clean_start(process: Process, purpose: str) -> None:
    """Raise UsageError, naming the `purpose`, when a schedule leaves noise at time 0."""
    noise = 1 - float(process.schedule.alpha(torch.zeros((), dtype=torch.float64)))
    if noise > 1e-9:
        raise UsageError(
            f"{purpose}: {process.schedule} leaves {noise:.3g} of the tokens noisy at time 0",
            "use a schedule that begins at 1",
        )


def share_time(process: Process, noisy: Tensor, free: Tensor, *, doubt: float = 0.0) -> Tensor:
    """Return the time at which as many of the free positions would be noise as are: (B, L) twice -> (B, 1) float64.

    `doubt`: a number of further positions taken for noise.
    """
    num_noisy, num_free = noisy.sum(-1, keepdim=True).double(), free.sum(-1, keepdim=True).double()
    return process.schedule.time_of(1 - (num_noisy + doubt) / (num_free + doubt).clamp_min(1))


class Kernel(Sampler):
    """A sampler whose next tokens are independent given the canvas, each from its own `law`."""

    @abstractmethod
    def law(self, look: Look) -> Tensor:
        """Return the law of each next token: (B, L, S) float64."""

    def noisy(self, look: Look, tokens: Tensor) -> Tensor:
        """Return where the new `tokens` may still change: (B, L) bool; all free ones until the last step here."""
        return look.free if look.steps_left > 1 else torch.zeros_like(look.free)

    @final
    def step(self, look: Look) -> Step:
        # Whether a token changes is drawn first, and to what second: no chance is a product of the two.
        law = self.law(look)
        change = law.scatter(-1, look.tokens[..., None], 0.0)
        happens = look.noise(Stream.ORDER) * law.sum(-1) < change.sum(-1)
        tokens = torch.where(happens, draw(change, look.noise(Stream.TOKEN)), look.tokens)
        noisy = self.noisy(look, tokens)
        return Step(tokens, noisy, ~noisy.any(-1))
