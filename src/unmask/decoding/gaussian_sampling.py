"""The sampling loop of Gaussian noise: whole texts sharpen out of noisy embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape, draw, sampling_law
from unmask.decoding.canvas import check_canvases
from unmask.decoding.gaussian_samplers import GaussianMove, GaussianSampler, Seen
from unmask.decoding.sampling import Sampled
from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser
from unmask.diffusion.gaussian_objective import given_rows, told_levels
from unmask.rng import Stream, uniforms


@dataclass(frozen=True)
class Sharpened(Sampled):
    """Canvases whose every free token may change until the last forward.

    `tokens`: the most probable ones, and at the end the drawn ones. `confidence`: (B, L) their probabilities, zeros
    before the first forward, ones where given.
    """

    confidence: Tensor


def gaussian_sample(
    denoiser: GaussianDenoiser,
    process: Gaussian,
    tokens: Tensor,
    free: Tensor,
    sampler: GaussianSampler,
    *,
    steps: int,
    seeds: Sequence[int],
    shape: Shape | None = None,
    start: int = 0,
) -> Sharpened:
    """Run `gaussian_sampling` to its end and return the finished canvases."""
    *_, sampled = gaussian_sampling(
        denoiser, process, tokens, free, sampler, steps=steps, seeds=seeds, shape=shape, start=start
    )
    return sampled


@torch.no_grad()
def gaussian_sampling(
    denoiser: GaussianDenoiser,
    process: Gaussian,
    tokens: Tensor,
    free: Tensor,
    sampler: GaussianSampler,
    *,
    steps: int,
    seeds: Sequence[int],
    shape: Shape | None = None,
    start: int = 0,
) -> Iterator[Sharpened]:
    """Fill the `free` (B, L) bool positions of `tokens` (B, L) in `steps` forwards; the others are given, anywhere.

    Yields the canvases before the first forward and after every move. `shape` of the denoiser's law, as it is unless
    given: both of the mean that the embeddings go to and of the tokens drawn in the end, from what the last forward
    says. `seeds`: one for each row, which depends on nothing but itself, as far as the denoiser's rows do. `start`:
    place of the first column in the sequence, a key of the noise. After each forward its probabilities are the next
    one's belief. Raises UsageError for inputs that do not fit each other.
    """
    check_canvases(tokens, free, steps=steps, num_seeds=len(seeds), vocab_size=process.vocab_size)
    rows, length = tokens.shape
    keys = Keys(tuple(seeds), torch.arange(start, start + length).expand(rows, -1), (0,) * rows)
    given = tokens.where(~free, 0)
    looker = _Looker(denoiser, process, given, free, shape or Shape())
    levels = process.schedule.levels(sampler.num_moves(steps)).to(tokens.device)
    z = _normals(keys, process)
    nowhere = torch.zeros_like(tokens)
    last = process.evidence(z, levels[0]).argmax(-1).where(free, given)
    decided_at, has_free = nowhere, free.any(-1)
    yield Sharpened(last, free, decided_at, nowhere.sum(-1), (~free).double())
    if not has_free.any():
        return
    for number, (gamma, target) in enumerate(pairwise(levels), start=1):
        moving = Keys(keys.seeds, keys.positions, (number,) * rows)
        move = GaussianMove(
            process, z, gamma, target, looker, partial(_normals, moving, process), looker.last
        )
        left = steps - looker.num_forwards
        z = sampler.move(move, forwards=left)
        law, is_last = looker.law(), number == len(levels) - 1
        found = draw(law, moving.noise(Stream.TOKEN).to(law.device)) if is_last else law.argmax(-1)
        found = found.where(free, given)
        decided_at = torch.where(found != last, looker.num_forwards, decided_at)
        confidence = law.gather(-1, found[..., None])[..., 0].where(free, 1.0)
        noisy = torch.zeros_like(free) if is_last else free
        yield Sharpened(found, noisy, decided_at, has_free * looker.num_forwards, confidence)
        last = found


class _Looker:
    """Calls the denoiser, and remembers what it said last."""

    def __init__(
        self, denoiser: GaussianDenoiser, process: Gaussian, given: Tensor, free: Tensor, shape: Shape
    ) -> None:
        self._denoiser, self._process, self._free, self._shape = denoiser, process, free, shape
        self._shown, (self._low, _) = given_rows(given, process), process.schedule.ends()
        self._logits: Tensor | None = None
        self.last: Seen | None = None
        self.num_forwards = 0

    def __call__(self, z: Tensor, gamma: Tensor) -> Tensor:
        z = torch.where(self._free[..., None], z, self._shown)
        told = told_levels(gamma, self._free, self._low.to(gamma))
        belief = None if self._logits is None else self._logits.softmax(-1)
        self._logits = self._denoiser(z, told, belief).to(z.device)
        self.num_forwards += 1
        self.last = Seen(self._process.mean(self.law()), gamma)
        return self.last.mean

    def law(self) -> Tensor:
        """Return the shaped law of the last forward: (B, L, K) float64."""
        assert self._logits is not None
        return sampling_law(self._logits, self._shape)


def _normals(keys: Keys, process: Gaussian) -> Tensor:
    """Draw standard normal embeddings, each number keyed by its row's seed, position and step: (B, L, E)."""
    places = keys.positions[..., None] * process.size + torch.arange(process.size)
    draws = uniforms(keys.seeds, places.flatten(1).numpy(), keys.steps, Stream.CORRUPTION)
    inside = torch.from_numpy(draws).clamp(2.0**-54, 1 - 2.0**-53)
    noise: Tensor = torch.special.ndtri(inside)
    return noise.view(places.shape).to(process.embeddings)
