"""The sampling loop: whole canvases of noise, any process, any sampler."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape, draw
from unmask.decoding.canvas import check_canvases
from unmask.decoding.decision import Drift
from unmask.decoding.sampler import Look, Sampler, require_clean_start
from unmask.diffusion.denoising import DenoiserFunction, Prediction
from unmask.diffusion.process import Process
from unmask.errors import UsageError
from unmask.rng import Stream, uniforms


@dataclass(frozen=True)
class Sampled:
    """Canvases, finished or on their way.

    `tokens`: (B, L). `noisy`: (B, L) bool, what may still change. `decided_at`: (B, L) the forward that last changed
    each token, 0 for none. `num_forwards`: (B,) calls of the denoiser until the row was finished, or so far.
    """

    tokens: Tensor
    noisy: Tensor
    decided_at: Tensor
    num_forwards: Tensor


def sample(
    denoiser: DenoiserFunction,
    process: Process,
    tokens: Tensor,
    free: Tensor,
    sampler: Sampler,
    *,
    steps: int,
    seeds: Sequence[int],
    prediction: Prediction | None = None,
    shape: Shape | None = None,
    start: int = 0,
) -> Sampled:
    """Run `sampling` to its end and return the finished canvases."""
    *_, sampled = sampling(
        denoiser,
        process,
        tokens,
        free,
        sampler,
        steps=steps,
        seeds=seeds,
        prediction=prediction,
        shape=shape,
        start=start,
    )
    return sampled


@torch.no_grad()
def sampling(
    denoiser: DenoiserFunction,
    process: Process,
    tokens: Tensor,
    free: Tensor,
    sampler: Sampler,
    *,
    steps: int,
    seeds: Sequence[int],
    prediction: Prediction | None = None,
    shape: Shape | None = None,
    start: int = 0,
) -> Iterator[Sampled]:
    """Fill the `free` (B, L) bool positions of `tokens` (B, L) in at most `steps` forwards; the others are given.

    Yields the canvases as pure noise, and after every forward.

    `prediction`: the kind of law the denoiser predicts, the process's own unless given. `shape` of that law: as it is
    unless given. `seeds`: one for each row. `start`: place of the first column in the sequence, a key of the noise.
    After each forward the denoiser's probabilities are its next belief. Rows depend on nothing but themselves, as far
    as the denoiser's do. Raises UsageError for a sampler that does not fit the process, a schedule that does not
    begin at clean tokens, and inputs that do not fit each other.
    """
    _check(process, tokens, free, sampler, steps, seeds)
    rows, length = tokens.shape
    device, shape = tokens.device, shape or Shape()
    keys = Keys(tuple(seeds), torch.arange(start, start + length).expand(rows, -1), (0,) * rows)
    tokens = torch.where(free, _prior(process, length, keys).to(device), tokens)
    noisy, active, now = free, free.any(-1), 1.0
    decided_at, num_forwards = torch.zeros_like(tokens), torch.zeros(rows, dtype=torch.int64, device=device)
    best, steady = torch.full_like(tokens, -1), torch.full_like(tokens, -1)
    confidence = torch.zeros(rows, length, device=device)
    belief: Tensor | None = None
    drift, moves = Drift(sampler.memory), sampler.moves(steps, process.schedule)
    yield Sampled(tokens, noisy, decided_at, num_forwards)

    for step, move in enumerate(moves, start=1):
        if not active.any():
            break
        keys = Keys(keys.seeds, keys.positions, (step,) * rows)
        writable = free & active[:, None]
        if move.t > now:
            risen = process.transition(
                tokens, *torch.tensor([now, move.t], dtype=torch.float64, device=device)
            )
            tokens = torch.where(writable, draw(risen, keys.noise(Stream.CORRUPTION).to(device)), tokens)
        time = sampler.time(process, noisy, free, move)
        logits = process.without_mask(denoiser(tokens, time, belief).to(device))
        belief = logits.softmax(-1)
        last, best = best, logits.argmax(-1)
        steady = torch.where(best == last, steady + 1, 0)
        look = Look(
            process=process,
            tokens=tokens,
            free=free,
            time=time,
            move=move,
            logits=logits,
            kind=prediction or process.prediction,
            shape=shape,
            confidence=confidence,
            steady=steady,
            changes=drift.update(logits),
            keys=keys,
            steps_left=len(moves) - step + 1,
        )
        after = sampler.step(look)
        written = torch.where(writable, after.tokens, tokens)
        changed = written != tokens
        decided_at = decided_at.masked_fill(changed, step)
        likely = belief.gather(-1, written.clamp_max(belief.shape[-1] - 1)[..., None])[..., 0]
        confidence = likely.to(confidence.dtype).where(changed, confidence)
        num_forwards = num_forwards + active
        tokens, noisy, now = written, after.noisy & writable, move.s
        active = active & ~after.finished
        yield Sampled(tokens, noisy, decided_at, num_forwards)


def _check(
    process: Process, tokens: Tensor, free: Tensor, sampler: Sampler, steps: int, seeds: Sequence[int]
) -> None:
    sampler.check(process)
    require_clean_start(process, f"{sampler} cannot end at clean tokens")
    check_canvases(tokens, free, steps=steps, num_seeds=len(seeds), vocab_size=process.vocab_size)
    if process.is_masked(tokens[~free]).any():
        raise UsageError("given positions hold the mask token", "free them")


def _prior(process: Process, length: int, keys: Keys) -> Tensor:
    """Draw pure noise, every row by a generator of its own: (B, length)."""
    first = keys.positions[:, :1].numpy()
    draws = uniforms(keys.seeds, first, keys.steps, Stream.CORRUPTION)[:, 0]
    generators = [torch.Generator().manual_seed(int(value * 2**53)) for value in draws]
    return torch.stack([process.prior((length,), generator) for generator in generators])
