"""How probable a text is to a denoiser of noisy embeddings, with standard errors."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser
from unmask.diffusion.gaussian_likelihood import bound_draws, flow_draws
from unmask.errors import UsageError
from unmask.evaluation.likelihood import DEFAULT_BATCH_ROWS, Estimate


def gaussian_bound(
    denoiser: GaussianDenoiser,
    tokens: Tensor,
    process: Gaussian,
    generator: torch.Generator,
    *,
    num_samples: int,
    scored: Tensor | None = None,
    batch_rows: int = DEFAULT_BATCH_ROWS,
) -> Estimate:
    """Estimate the variational bound on -log p of each row of clean `tokens` (B, L), in nats.

    One forward for each sample, at most `batch_rows` of them at once; no belief. `scored` (B, L) bool: the tokens that
    are noised and count, all unless given; the others are given. Raises UsageError for fewer than two samples.
    """

    def draws(clean: Tensor, scored: Tensor) -> Tensor:
        return bound_draws(denoiser, clean, process, generator, scored=scored)

    return _estimate(draws, tokens, scored, num_samples, batch_rows)


def flow_likelihood(
    denoiser: GaussianDenoiser,
    tokens: Tensor,
    process: Gaussian,
    generator: torch.Generator,
    *,
    num_steps: int,
    num_samples: int,
    scored: Tensor | None = None,
    batch_rows: int = DEFAULT_BATCH_ROWS,
) -> Estimate:
    """Estimate -log p of each row of clean `tokens` (B, L) under the deterministic sampler, in nats.

    A sample costs four forwards and backwards for each of `num_steps`, 32 of which are plenty; their finite number is
    an error besides the standard error. The rest is as in `gaussian_bound`.
    """
    if num_steps < 1:
        raise UsageError(f"num_steps={num_steps} must be at least 1")

    def draws(clean: Tensor, scored: Tensor) -> Tensor:
        return flow_draws(denoiser, clean, process, generator, num_steps=num_steps, scored=scored)

    return _estimate(draws, tokens, scored, num_samples, batch_rows)


def _estimate(
    draws: Callable[[Tensor, Tensor], Tensor],
    tokens: Tensor,
    scored: Tensor | None,
    num_samples: int,
    batch_rows: int,
) -> Estimate:
    if num_samples < 2:
        raise UsageError(f"num_samples={num_samples}: a standard error needs at least 2")
    scored = torch.ones_like(tokens, dtype=torch.bool) if scored is None else scored
    # Copies of a row lie side by side, for draws stratify times over the rows of one call.
    copies, flags = (rows.repeat_interleave(num_samples, 0) for rows in (tokens, scored))
    parts = zip(torch.split(copies, batch_rows), torch.split(flags, batch_rows), strict=True)
    samples = torch.cat([draws(*part) for part in parts]).view(len(tokens), num_samples)
    return Estimate(samples.mean(-1), samples.std(-1) / math.sqrt(num_samples), num_samples)
