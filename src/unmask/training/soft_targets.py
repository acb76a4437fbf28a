"""Cross-entropy against a teacher's whole distribution, without ever holding all the logits."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SoftTargets:
    """What M student states should predict.

    `teacher`: (M, D) final states whose laws p are the targets. `labels`: (M,) true tokens, mixed into the target with
    `label_shares` (M,). `weights`: (M,) share of each state in the loss.
    """

    teacher: Tensor
    labels: Tensor
    label_shares: Tensor
    weights: Tensor


@dataclass(frozen=True)
class SoftLoss:
    """`loss`: weighted sum, differentiable. `overlap`: (M,) sum of min(p, q), the chance that speculation accepts.

    `agrees`: (M,) whether student and teacher have the same favourite token, the same for greedy speculation.
    """

    loss: Tensor
    overlap: Tensor
    agrees: Tensor


def soft_cross_entropy(student: Tensor, targets: SoftTargets, head: Tensor, *, chunk: int = 128) -> SoftLoss:
    """Return the cross-entropy of the laws of `student` (M, D) under the output matrix `head` (V, D), in nats.

    The gradient of the states is made in the forward pass, `chunk` rows of logits at a time; `head` gets none.
    """
    loss, overlap, agrees = _SoftCrossEntropy.apply(student, targets, head, chunk)  # type: ignore[no-untyped-call]
    return SoftLoss(loss, overlap, agrees)


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, targets: SoftTargets, head: Tensor, chunk: int
    ) -> tuple[Tensor, ...]:
        rows = len(student)
        gradient = torch.empty_like(student)
        losses, overlap = torch.empty(rows), torch.empty(rows)
        agrees = torch.empty(rows, dtype=torch.bool)
        for begin in range(0, rows, chunk):
            part = slice(begin, begin + chunk)
            teacher_law = F.linear(targets.teacher[part], head).float().softmax(-1)
            log_law = F.linear(student[part], head).float().log_softmax(-1)
            law = log_law.exp()
            agrees[part] = law.argmax(-1) == teacher_law.argmax(-1)
            overlap[part] = torch.minimum(law, teacher_law).sum(-1)
            share = targets.label_shares[part, None]
            target = teacher_law.mul_(1 - share).scatter_add_(1, targets.labels[part, None], share)
            losses[part] = -(target * log_law).sum(-1)
            # d loss / d logits = q - target, for the target sums to one.
            slope = law.sub_(target).mul_(targets.weights[part, None])
            gradient[part] = slope.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(overlap, agrees)
        return (losses * targets.weights).sum(), overlap, agrees

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None
