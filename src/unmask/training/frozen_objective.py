"""What the canvases of a frozen model learn: its own next-token law, where they cannot see the tokens before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.layout import Layout, Segment
from unmask.model.denoiser import Denoiser
from unmask.training.blocks import BlockConfig, cut, draft_lengths, is_draft
from unmask.training.documents import Document
from unmask.training.soft_targets import AcceptanceLoss, EitherLoss, RowLoss, SoftCrossEntropy, distil


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a canvas should predict, and what counts more.

    Fully open canvases (drafts) learn the frozen model's own next-token law given the true text so far; the
    prediction for the j-th position weighs ``draft_decay ** (j - 1)``, for a draft is only used up to its first error.
    Partly open canvases (denoising) may know the tokens that follow, which that law does not, so the true token has
    `label_share` of their target. With `acceptance`, drafts are scored by that loss, each up to its first error, and
    partly open canvases as before.
    """

    blocks: BlockConfig
    draft_decay: float
    label_share: float
    teacher_temperature: float = 1.0
    acceptance: AcceptanceLoss | None = None


@dataclass(frozen=True)
class BatchLoss:
    """One batch: `loss` is its weighted mean, differentiable.

    `overlap`: for each drafted token the chance that it is accepted when sampled. `cycle_tokens`: for each draft of the
    greatest length, the tokens that a greedy draft-verify cycle would emit on this very text.
    """

    loss: Tensor
    overlap: Tensor
    cycle_tokens: Tensor
    num_tokens: int


def conversion_loss(
    denoiser: Denoiser,
    documents: Sequence[Document],
    config: ObjectiveConfig,
    generator: np.random.Generator,
) -> BatchLoss:
    """Return the frozen recipe's loss on a batch of documents, in nats per weighted target.

    Two forwards: the documents through the causal stream, without gradients, leaving their keys and values in a cache;
    then all canvases on that cache. Every canvas sees its document before its start, itself, and nothing else. It lies
    within what is learnt of its document.
    """
    mask = denoiser.mask_token_id
    assert mask is not None
    sizes = [len(document.ids) for document in documents]
    cache = denoiser.new_cache(max(sizes), num_rows=len(documents))
    clean = torch.tensor(
        [token for document in documents for token in document.ids], device=denoiser.transformer.device
    )
    with torch.no_grad():
        layout = Layout([Segment(0, size, store=True, row=row) for row, size in enumerate(sizes)])
        teacher = denoiser.transformer(clean, layout, cache)
    canvases = [
        canvas
        for row, document in enumerate(documents)
        for canvas in cut(document, row, mask, config.blocks, generator)
    ]
    states = denoiser.canvas_states(canvases, cache)
    which, place = states.canvas, states.position
    is_open = torch.stack(
        [canvases[c].tokens[p] == mask for c, p in zip(which.tolist(), place.tolist(), strict=True)]
    )
    device = states.hidden.device
    hidden, which, place = states.hidden[is_open.to(device)], which[is_open], place[is_open]
    drafts = torch.tensor([is_draft(canvas, mask) for canvas in canvases])
    packed = (
        torch.tensor([int(layout.bounds[canvas.row]) + canvas.start for canvas in canvases])[which] + place
    ).to(device)
    in_draft = drafts[which]
    weights = torch.where(in_draft, config.draft_decay ** (place - 1).clamp(min=0), 1.0)
    label_shares = torch.where(in_draft, 0.0, config.label_share).to(device)
    target: RowLoss = SoftCrossEntropy(clean[packed], label_shares, config.teacher_temperature)
    if config.acceptance is not None:
        target = EitherLoss(in_draft.to(device), config.acceptance, target)
    result = distil(hidden, teacher[packed - 1], denoiser.transformer.head_weight, target)
    # The first draft is the model's own, so it holds; without a shift the canvas has a guess at it that nobody takes.
    is_taken = ~in_draft | (place > 0)
    accepted = draft_lengths(result.agrees.cpu() | ~is_taken, which, len(canvases))
    if config.acceptance is not None:
        # A draft counts up to its first rejected token, and what comes after it is never looked at.
        looked_at = place - int(denoiser.logit_shift) <= accepted[which]
        weights = weights * ((looked_at & is_taken) | ~in_draft)
    lengths = torch.tensor([len(canvas.tokens) for canvas in canvases])
    longest = drafts & (lengths == max(config.blocks.lengths))
    return BatchLoss(
        (result.losses * weights.to(device)).sum()
        / weights.sum().clamp_min(1e-6),  # all open ones may be given
        overlap=result.overlap.cpu()[in_draft],
        # The verifier adds one token, and under a shift the first draft, its own, is in no canvas.
        cycle_tokens=accepted[longest].float() + 1 + int(denoiser.logit_shift),
        num_tokens=len(clean),
    )
