"""The training loss of a denoiser under a process.

How losses are normalised, here and everywhere: a loss is the sum of its terms over all scored tokens of the *global*
batch, that is of every rank and every accumulation step, divided by the number of those tokens. So functions return
a sum and a count, and the trainer divides. A token counts once for being noised and scored, also where this draw of
the noise left it clean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.diffusion.denoising import DenoiserFunction, Prediction
from unmask.diffusion.process import Process
from unmask.diffusion.times import LowDiscrepancy, Noised, TimeSampling

Weighting = Literal["bound", "cross_entropy"]
"""`bound`: an unbiased estimate of the diffusion part of the negative ELBO. `cross_entropy`: -log p(x_0 | x_t), the
same at every noise level; no bound, but it trains well, and its optimum is the posterior."""


@dataclass(frozen=True)
class LossOutput:
    """A sum in nats, scalar and differentiable, and the number of tokens it is over."""

    total: Tensor
    num_tokens: int


def diffusion_loss(
    denoiser: DenoiserFunction,
    x0: Tensor,
    process: Process,
    generator: torch.Generator,
    *,
    times: TimeSampling | None = None,
    trained: Tensor | None = None,
    weighting: Weighting = "bound",
    prediction: Prediction | None = None,
    belief_share: float = 0.0,
) -> LossOutput:
    """Noise clean rows (B, L), denoise them once and score the result.

    `times`: `LowDiscrepancy` unless given. `trained` (B, L) bool: positions that are noised and scored, all unless
    given; the others are clean context or padding. `prediction`: the kind of law the denoiser predicts, the
    process's own unless given. `belief_share`: share of rows that see the denoiser's own first prediction as their
    belief, at the cost of one more forward.
    """
    trained = torch.ones_like(x0, dtype=torch.bool) if trained is None else trained
    noised = (times or LowDiscrepancy()).noise(x0, process, generator, trained=trained)
    belief = own_beliefs(
        lambda: process.without_mask(denoiser(noised.tokens, noised.time)), belief_share, generator
    )
    logits = denoiser(noised.tokens, noised.time, belief)
    losses = token_losses(logits, x0, noised, process, weighting=weighting, prediction=prediction)
    return LossOutput(losses.sum(), int(trained.sum()))


@torch.no_grad()
def own_beliefs(predict: Callable[[], Tensor], share: float, generator: torch.Generator) -> Tensor | None:
    """Return the law of a first prediction, logits (B, L, K), for a `share` of the rows and zeros for the others.

    With a share of 0 nothing is predicted or drawn.
    """
    if not share:
        return None
    belief = predict().softmax(-1)
    draw = torch.rand(len(belief), generator=generator, device=generator.device).to(belief.device)
    return belief * (draw < share)[:, None, None]


def token_losses(
    logits: Tensor,
    x0: Tensor,
    noised: Noised,
    process: Process,
    *,
    weighting: Weighting = "bound",
    prediction: Prediction | None = None,
) -> Tensor:
    """Return every token's term of the loss in nats, zero where not trained: (...), float32 at least.

    `logits` (..., K) of the clean tokens `x0` (...). The shapes are those of `noised`, also after `Noised.at`: under
    masked noise only masked tokens have a term, so that logits elsewhere need not be computed.
    """
    source = prediction or process.prediction
    dtype = torch.promote_types(logits.dtype, torch.float32)
    law = process.without_mask(logits).log_softmax(-1, dtype=dtype)
    if weighting == "cross_entropy" or noised.weight is not None:
        losses = process.cross_entropy(law, x0, noised.tokens, noised.time, source=source)
        if weighting == "bound" and noised.weight is not None:
            losses = losses * noised.weight.to(losses.dtype)
    else:
        law = process.convert(law, noised.tokens, noised.time, source=source, target=process.prediction)
        losses = process.nll(law, x0, noised.tokens, noised.time)
    return losses.where(noised.trained, 0)
