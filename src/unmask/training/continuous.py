"""What a continuous model learns: to name the tokens behind noisy vectors, the vectors, and their schedule."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.diffusion.gaussian import Informed
from unmask.diffusion.gaussian_objective import gaussian_loss
from unmask.diffusion.objective import Weighting
from unmask.model.denoiser import Denoiser
from unmask.training.batches import Batch
from unmask.training.loss import LossSum
from unmask.training.objectives import DIFFUSION
from unmask.training.streams import noisy_stream

SCHEDULE = "schedule"
"""The name of what a learning schedule minimises; a number without unit."""


@dataclass(frozen=True)
class ContinuousObjective:
    """The losses of one forward over packed pieces of text, each noised as a whole at a time of its own.

    `belief_share`: share of the pieces for which the denoiser sees its own first prediction. `schedule_weight`: of what
    the schedule minimises beside the diffusion loss; a schedule that learns nothing has no loss.
    """

    denoiser: Denoiser
    weighting: Weighting = "bound"
    belief_share: float = 0.0
    schedule_weight: float = 1.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Mapping[str, LossSum]:
        """Score a batch: for each loss by name the sum in nats, and the number of tokens it is over."""
        # Pieces become the rows of a matrix, padded on the right; the backbone sees what is inside only.
        streams = noisy_stream(batch.bounds)
        inside = streams.inside.to(batch.tokens.device)
        places = inside.flatten().nonzero()[:, 0]
        clean = batch.tokens.new_zeros(inside.shape)
        clean[inside] = batch.tokens
        trained = torch.zeros_like(inside)
        trained[inside] = ~batch.given

        def network(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
            logits = self.denoiser.continuous(
                noisy[inside], gamma[inside], None if belief is None else belief[inside], streams.layout
            )
            rows = logits.new_zeros(inside.numel(), logits.shape[-1])
            return rows.index_copy(0, places, logits).view(*inside.shape, -1)

        process = self.denoiser.informed().process
        loss = gaussian_loss(
            Informed(network, process),
            clean,
            process,
            generator,
            trained=trained,
            weighting=self.weighting,
            belief_share=self.belief_share,
        )
        losses = {DIFFUSION: LossSum(loss.total, loss.num_tokens)}
        if next(process.schedule.parameters(), None) is not None:
            fit = loss.fit.to(loss.total.dtype) * loss.num_tokens
            losses[SCHEDULE] = LossSum(fit, loss.num_tokens, self.schedule_weight)
        return losses
