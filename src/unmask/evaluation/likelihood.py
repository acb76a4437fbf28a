"""How probable a text is: exactly, or by an unbiased estimate of a bound with its standard error."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unmask.decoding.candidates import Shape, sampling_law
from unmask.decoding.rules import Rule
from unmask.decoding.sampler import Look, Move, Sampler, Step, require_clean_start
from unmask.decoding.samplers import Unmask
from unmask.decoding.sampling import sample
from unmask.diffusion.denoising import DenoiserFunction, Prediction
from unmask.diffusion.masked import Masked
from unmask.diffusion.objective import token_losses
from unmask.diffusion.process import Process
from unmask.diffusion.times import ExactCount, LowDiscrepancy, Noised, TimeSampling
from unmask.errors import UsageError

DEFAULT_BATCH_ROWS = 64


@dataclass(frozen=True)
class Estimate:
    """Means over Monte Carlo samples, their standard errors, both (B,) or scalar, and the number of samples of each.

    The error is that of the noise alone, for the given texts. Samples are stratified in time, and the error is the one
    that independent samples of the same spread would have, so it is too large rather than too small.
    """

    mean: Tensor
    standard_error: Tensor
    num_samples: int

    def sum(self) -> "Estimate":
        """Add up the rows, whose noise is independent."""
        return Estimate(self.mean.sum(), self.standard_error.square().sum().sqrt(), self.num_samples)

    def scaled(self, factor: float) -> "Estimate":
        """Express the estimate in other units, say per token."""
        return Estimate(self.mean * factor, self.standard_error * abs(factor), self.num_samples)


class BlockDenoiser(Protocol):
    """A denoiser of blocks, each of which sees the clean tokens before it and the noisy ones beside it."""

    def __call__(
        self, clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int], wanted: Tensor
    ) -> Tensor:
        """Return logits (M, K) at the M places `wanted` (B, L) of all blocks of `noisy` (B, L) at `time` (B, L).

        `clean`: (B, L) the true tokens. `starts`: where each block begins; a block ends where the next one begins.
        None is wanted before the first block.
        """


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Convert nats of a text to bits per byte of it: comparable over tokenizers."""
    return nats / (math.log(2) * num_bytes)


def autoregressive_nll(logits: Tensor, tokens: Tensor, *, scored: Tensor | None = None) -> Tensor:
    """Return -log p of `tokens` (B, L) in nats, (B,) float64, by next-token logits (B, L, K) aligned with them.

    `scored` (B, L) bool: the tokens that count, all unless given.
    """
    nats = -logits.double().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return nats.where(_scored(tokens, scored), 0).sum(-1)


def bound(
    denoiser: DenoiserFunction,
    tokens: Tensor,
    process: Process,
    generator: torch.Generator,
    *,
    num_samples: int,
    scored: Tensor | None = None,
    times: TimeSampling | None = None,
    prediction: Prediction | None = None,
    batch_rows: int = DEFAULT_BATCH_ROWS,
) -> Estimate:
    """Estimate the bound on -log p of each row of clean `tokens` (B, L), in nats.

    `scored` (B, L) bool: the tokens that are noised and count, all unless given; the others are given. `times`: for
    masked noise the exact counts, which depend on no schedule, else low-discrepancy times, unless given.
    `prediction`: the kind of law the denoiser predicts, the process's own unless given. At most `batch_rows` rows are
    denoised at once, without a belief. Raises UsageError for fewer than two samples, and where sampled times would
    miss what a schedule does before them.
    """

    def denoise(clean: Tensor, noisy: Tensor, time: Tensor, wanted: Tensor) -> Tensor:
        return denoiser(noisy, time)[wanted]

    pieces = [range(tokens.shape[1])]
    return _bound(
        denoise, tokens, process, generator, pieces, num_samples, scored, times, prediction, batch_rows
    )


def block_bound(
    denoiser: BlockDenoiser,
    tokens: Tensor,
    process: Process,
    block_length: int,
    generator: torch.Generator,
    *,
    num_samples: int,
    num_given: int = 0,
    scored: Tensor | None = None,
    times: TimeSampling | None = None,
    prediction: Prediction | None = None,
    batch_rows: int = DEFAULT_BATCH_ROWS,
) -> Estimate:
    """Estimate the bound on -log p of each row (B, L), in nats, of a model that denoises block after block.

    The first `num_given` tokens are given, the blocks of `block_length` follow; every block has a noise level of its
    own and sees the clean tokens before it (Arriola et al. 2025, BD3-LM, arXiv 2503.09573). With masked noise, blocks
    of one token are the autoregressive likelihood, exactly. The rest is as in `bound`.
    """
    if block_length < 1:
        raise UsageError(f"block_length={block_length} must be at least 1")
    length = tokens.shape[1]
    starts = range(num_given, length, block_length)
    pieces = [range(start, min(start + block_length, length)) for start in starts]

    def denoise(clean: Tensor, noisy: Tensor, time: Tensor, wanted: Tensor) -> Tensor:
        return denoiser(clean, noisy, time, starts, wanted)

    return _bound(
        denoise, tokens, process, generator, pieces, num_samples, scored, times, prediction, batch_rows
    )


@dataclass(frozen=True)
class Duel:
    """Exact -log p of each row, (B,) float64 nats, and the forwards (B,) that a decoder takes to write it."""

    nats: Tensor
    num_forwards: Tensor


def duel_nll(
    denoiser: DenoiserFunction,
    process: Process,
    tokens: Tensor,
    rule: Rule,
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    scored: Tensor | None = None,
    shape: Shape | None = None,
) -> Duel:
    """Return the exact likelihood of `tokens` (B, L) under unmasking by a rule that selects before tokens are drawn.

    What a rule selects then follows from what is already written, so every text has one way to be written, and its
    probability is a product over forwards (DUEL, arXiv 2603.01367). It is that of
    ``sample(..., Unmask(rule, "highest"), steps=steps, seeds=seeds, shape=shape)``; the seeds matter to rules that look
    at noise. `steps`: as many as there are tokens unless given. `scored` (B, L) bool: the tokens that are written, all
    unless given. For masked noise only.
    """
    scored = _scored(tokens, scored)
    writer = _Writer(rule, tokens)
    written = sample(
        denoiser, process, tokens, scored, writer, steps=steps or tokens.shape[1], seeds=seeds, shape=shape
    )
    return Duel(writer.nats, written.num_forwards)


class _Writer(Sampler):
    """Unmasks as `Unmask(rule, "highest")` does, but writes the given tokens, and adds up what that costs."""

    def __init__(self, rule: Rule, tokens: Tensor) -> None:
        self._reader, self._tokens = Unmask(rule, "highest"), tokens
        self.nats = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)

    @property
    def memory(self) -> int:
        return self._reader.memory

    def check(self, process: Process) -> None:
        self._reader.check(process)

    def time(self, process: Process, noisy: Tensor, free: Tensor, move: Move) -> Tensor:
        return self._reader.time(process, noisy, free, move)

    def step(self, look: Look) -> Step:
        after = self._reader.step(look)
        chosen = look.free & look.process.is_masked(look.tokens) & ~after.noisy
        law = sampling_law(look.logits, look.shape)
        nats = -law.gather(-1, self._tokens.clamp_min(0)[..., None])[..., 0].log()
        self.nats += nats.where(chosen, 0).sum(-1)
        return Step(torch.where(chosen, self._tokens, look.tokens), after.noisy, after.finished)


_Denoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Clean tokens, noisy tokens, times and the places wanted, (B, L) each, to logits (M, K) at these."""


def _bound(
    denoise: _Denoise,
    tokens: Tensor,
    process: Process,
    generator: torch.Generator,
    pieces: Sequence[range],
    num_samples: int,
    scored: Tensor | None,
    times: TimeSampling | None,
    prediction: Prediction | None,
    batch_rows: int,
) -> Estimate:
    """Estimate the sum of the bounds of the pieces, each with noise levels of its own."""
    if num_samples < 2:
        raise UsageError(f"num_samples={num_samples}: a standard error needs at least 2")
    masks = isinstance(process, Masked)
    times = times or (ExactCount() if masks else LowDiscrepancy())
    counts = isinstance(times, ExactCount)
    if not counts:
        require_clean_start(process, f"{times} would miss a part of the bound")
    scored = _scored(tokens, scored)
    rows_at_once = max(1, batch_rows // num_samples)
    sums = []
    for begin in range(0, len(tokens), rows_at_once):
        rows = range(begin, min(begin + rows_at_once, len(tokens)))
        noised = _joined(
            [_noise(tokens[row], scored[row], process, times, generator, pieces, num_samples) for row in rows]
        )
        clean = tokens[begin : rows.stop].repeat_interleave(num_samples, 0)
        for part in range(0, len(clean), batch_rows):
            some = slice(part, part + batch_rows)
            noisy = _rows(noised, some)
            # Under masked noise what is not masked has no term.
            wanted = noisy.trained & process.is_masked(noisy.tokens) if masks else noisy.trained
            with torch.no_grad():
                logits = denoise(clean[some], noisy.tokens, noisy.time, wanted).to(tokens.device)
                losses = token_losses(
                    logits, clean[some][wanted], noisy.at(wanted), process, prediction=prediction
                )
            rows_wanted = wanted.nonzero()[:, 0]
            total = torch.zeros(len(wanted), dtype=torch.float64, device=tokens.device)
            sums.append(total.index_add(0, rows_wanted, losses.double()))
    samples = torch.cat(sums).view(len(tokens), num_samples)
    prior = torch.zeros(()) if counts else process.prior_nll(tokens).where(scored, 0).sum(-1)
    return Estimate(samples.mean(-1) + prior, samples.std(-1) / math.sqrt(num_samples), num_samples)


def _noise(
    tokens: Tensor,
    scored: Tensor,
    process: Process,
    times: TimeSampling,
    generator: torch.Generator,
    pieces: Sequence[range],
    num_samples: int,
) -> Noised:
    """Noise one row (L,) `num_samples` times, piece by piece; what lies outside the pieces stays clean, at time 0."""
    copies, trained = tokens.repeat(num_samples, 1), scored.repeat(num_samples, 1)
    noisy, time, weight = copies.clone(), torch.zeros_like(copies, dtype=torch.float64), None
    for piece in pieces:
        columns = slice(piece.start, piece.stop)
        part = times.noise(copies[:, columns], process, generator, trained=trained[:, columns])
        noisy[:, columns], time[:, columns] = part.tokens, part.time
        if part.weight is not None:
            weight = torch.zeros_like(time) if weight is None else weight
            weight[:, columns] = part.weight
    outside = torch.ones_like(tokens, dtype=torch.bool)
    outside[[place for piece in pieces for place in piece]] = False
    return Noised(noisy, time, trained & ~outside, weight)


def _joined(parts: Sequence[Noised]) -> Noised:
    weights = [part.weight for part in parts if part.weight is not None]
    return Noised(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.time for part in parts]),
        torch.cat([part.trained for part in parts]),
        torch.cat(weights) if weights else None,
    )


def _rows(noised: Noised, rows: slice) -> Noised:
    weight = None if noised.weight is None else noised.weight[rows]
    return Noised(noised.tokens[rows], noised.time[rows], noised.trained[rows], weight)


def _scored(tokens: Tensor, scored: Tensor | None) -> Tensor:
    return torch.ones_like(tokens, dtype=torch.bool) if scored is None else scored
