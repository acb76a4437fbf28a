"""What a continuous model learns: to name the tokens behind noisy vectors, the vectors, and their schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.diffusion.flow_end import flow_end_loss
from unmask.diffusion.gaussian import Informed
from unmask.diffusion.gaussian_objective import gaussian_loss
from unmask.diffusion.objective import Weighting
from unmask.layout import Layout
from unmask.model.denoiser import Denoiser
from unmask.training.batches import Batch
from unmask.training.loss import LossSum
from unmask.training.objectives import DIFFUSION
from unmask.training.streams import noisy_stream

SCHEDULE = "schedule"
"""The name of what a learning schedule minimises; a number without unit."""

CROSS_ENTROPY = "cross_entropy"
"""The name of the loss that names tokens, in nats at times as the schedule spreads them; it bounds nothing."""

FLOW_END = "flow_end"
"""The name of a student's cross-entropy to its teacher's end."""


@dataclass(frozen=True)
class PieceRows:
    """Packed pieces as the rows of a matrix, padded on the right; a backbone sees what is inside only.

    `clean`, `inside`, `trained`: (R, L). `places`: of the packed tokens among all R L places.
    """

    layout: Layout
    clean: Tensor
    inside: Tensor
    trained: Tensor
    places: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "PieceRows":
        """Part a batch into its pieces."""
        streams = noisy_stream(batch.bounds)
        inside = streams.inside.to(batch.tokens.device)
        clean = batch.tokens.new_zeros(inside.shape)
        clean[inside] = batch.tokens
        trained = torch.zeros_like(inside)
        trained[inside] = ~batch.given
        return cls(streams.layout, clean, inside, trained, inside.flatten().nonzero()[:, 0])

    def with_given(self, share: float, generator: torch.Generator) -> "PieceRows":
        """Return them with tokens given in this share of the rows: from none to all, evenly, here and there."""
        if not share:
            return self
        shape, device = self.clean.shape, generator.device
        in_row, row, token = (
            torch.rand(size, generator=generator, device=device).to(self.clean.device)
            for size in ((shape[0], 1), (shape[0], 1), shape)
        )
        return replace(self, trained=self.trained & ((in_row >= share) | (token >= row)))

    def informed(self, denoiser: Denoiser) -> Informed:
        """Return a continuous model as the denoiser of these rows."""

        def network(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
            inside = self.inside
            logits = denoiser.continuous(
                noisy[inside], gamma[inside], None if belief is None else belief[inside], self.layout
            )
            rows = logits.new_zeros(inside.numel(), logits.shape[-1])
            return rows.index_copy(0, self.places, logits).view(*inside.shape, -1)

        return Informed(network, denoiser.informed().process)


@dataclass(frozen=True)
class ContinuousObjective:
    """The losses of one forward over packed pieces of text, each noised as a whole at a time of its own.

    `given_share`: share of the pieces in which tokens are given here and there, as they are when the model is used.
    `belief_share`: share of the pieces for which the denoiser sees its own first prediction. `schedule_weight`: of what
    the schedule minimises beside the diffusion loss; a schedule that learns nothing has no loss. Without gradients,
    where nothing is learnt but measured, the loss is the bound of whole pieces, however the model learns, and a model
    that knows beliefs sees its own in all of them.
    """

    denoiser: Denoiser
    weighting: Weighting = "cross_entropy"
    given_share: float = 0.0
    belief_share: float = 0.0
    schedule_weight: float = 1.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Mapping[str, LossSum]:
        """Score a batch: for each loss by name the sum in nats, and the number of tokens it is over."""
        learns = torch.is_grad_enabled()
        weighting = self.weighting if learns else "bound"
        rows = PieceRows.of(batch)
        if learns:
            rows = rows.with_given(self.given_share, generator)
        informed = rows.informed(self.denoiser)
        loss = gaussian_loss(
            informed,
            rows.clean,
            informed.process,
            generator,
            trained=rows.trained,
            weighting=weighting,
            belief_share=self.belief_share if learns else float(self.belief_share > 0),
        )
        name = DIFFUSION if weighting == "bound" else CROSS_ENTROPY
        losses = {name: LossSum(loss.total, loss.num_tokens)}
        if next(informed.process.schedule.parameters(), None) is not None:
            fit = loss.fit.to(loss.total.dtype) * loss.num_tokens
            losses[SCHEDULE] = LossSum(fit, loss.num_tokens, self.schedule_weight)
        return losses


@dataclass(frozen=True)
class FlowEndObjective:
    """What a student of few steps learns: where its teacher's flow ends, from noise on packed pieces of text.

    `num_steps`: forwards of the teacher. Both have the same vectors and schedule. `given_share`, `belief_share`: as in
    `ContinuousObjective`. Without gradients the pieces are whole.
    """

    denoiser: Denoiser
    teacher: Denoiser
    num_steps: int
    given_share: float = 0.0
    belief_share: float = 0.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Mapping[str, LossSum]:
        """Score a batch: the cross-entropy in nats, and the number of tokens it is over."""
        rows = PieceRows.of(batch)
        if torch.is_grad_enabled():
            rows = rows.with_given(self.given_share, generator)
        for part in (self.teacher.transformer, self.teacher.conditioning, self.teacher.vectors):
            if part is not None:
                part.to(batch.tokens.device)
        teacher = rows.informed(self.teacher)
        loss = flow_end_loss(
            rows.informed(self.denoiser),
            teacher,
            rows.clean,
            teacher.process,
            generator,
            num_steps=self.num_steps,
            trained=rows.trained,
            belief_share=self.belief_share,
        )
        return {FLOW_END: LossSum(loss.total, loss.num_tokens)}
