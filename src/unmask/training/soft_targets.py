"""Losses against a teacher's whole law, without ever holding all the logits."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_LOGITS = 6_300_000
"""Of one chunk; 25 MB in float32."""


class RowLoss(Protocol):
    """A loss of the student's logits given the teacher's, row by row."""

    def __call__(self, student: Tensor, teacher: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (m,) and their slopes in the student's logits (m, V), from float32 logits (m, V).

        `rows` (m,): which of all rows these are.
        """


@dataclass(frozen=True)
class SoftCrossEntropy:
    """Cross-entropy to the teacher's law, in which the true token `labels` (M,) has the share `label_shares` (M,).

    `temperature`: of the teacher's law. Towards 0 it is its favourite token alone.
    """

    labels: Tensor
    label_shares: Tensor
    temperature: float = 1.0

    def __call__(self, student: Tensor, teacher: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        log_law, share = student.log_softmax(-1), self.label_shares[rows, None]
        target = (
            (teacher / self.temperature)
            .softmax(-1)
            .mul_(1 - share)
            .scatter_add_(1, self.labels[rows, None], share)
        )
        losses = -(target * log_law).sum(-1)
        # The slope is q - target, for the target sums to one.
        return losses, log_law.exp_().sub_(target)


@dataclass(frozen=True)
class AcceptanceLoss:
    """What a drafter is tuned with: acceptance by the verifier, and its favourite token.

    With p and q the laws of teacher and student at `temperature`, on the union of their `support` likeliest tokens,
    and alpha = sum min(p, q) the chance of acceptance: lambda KL(p || q) + (1 - lambda)(1 - alpha), where
    lambda = exp(-eta alpha) (LK losses, arXiv 2602.23881), plus the cross-entropy to the teacher's favourite at
    temperature 1 (Nemotron-Labs-Diffusion, arXiv 2607.05722, section 3.3).
    """

    support: int = 200
    temperature: float = 3.0
    eta: float = 0.5

    def __call__(self, student: Tensor, teacher: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = min(self.support, student.shape[-1])
        likeliest, own = teacher.topk(size, dim=-1).indices, student.topk(size, dim=-1).indices
        tokens = torch.cat([likeliest, own], dim=-1)
        # A token of both sets counts once.
        known = torch.zeros_like(student, dtype=torch.bool).scatter_(1, likeliest, True)
        twice = torch.cat([torch.zeros_like(likeliest, dtype=torch.bool), known.gather(1, own)], dim=-1)
        p_logits, q_logits = (
            logits.gather(1, tokens).masked_fill(twice, -torch.inf) for logits in (teacher, student)
        )
        p, q = ((logits / self.temperature).softmax(-1) for logits in (p_logits, q_logits))
        alpha = torch.minimum(p, q).sum(-1, keepdim=True)
        mix = (-self.eta * alpha).exp()
        divergence = (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1, keepdim=True)
        below = torch.where(q < p, q, 0.0)
        slopes = mix * (q - p) - (1 - mix) * (below - q * below.sum(-1, keepdim=True))
        log_law = q_logits.log_softmax(-1)  # the favourite is the first of the support
        losses = mix * divergence + (1 - mix) * (1 - alpha) - log_law[:, :1]
        slopes = slopes / self.temperature + log_law.exp()
        slopes[:, 0] -= 1
        return losses[:, 0], torch.zeros_like(student).scatter_add_(1, tokens, slopes)


@dataclass(frozen=True)
class EitherLoss:
    """`first` for the rows that `chosen` (M,) bool names, `second` for the others."""

    chosen: Tensor
    first: RowLoss
    second: RowLoss

    def __call__(self, student: Tensor, teacher: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = student.new_empty(len(student)), torch.empty_like(student)
        chosen = self.chosen[rows]
        for loss, mine in ((self.first, chosen), (self.second, ~chosen)):
            losses[mine], slopes[mine] = loss(student[mine], teacher[mine], rows[mine])
        return losses, slopes


@dataclass(frozen=True)
class SoftLoss:
    """`losses`: (M,) nats, differentiable. `overlap`: (M,) sum of min(p, q), the chance that speculation accepts.

    `agrees`: (M,) whether student and teacher have the same favourite token, the same for greedy speculation.
    """

    losses: Tensor
    overlap: Tensor
    agrees: Tensor


def distil(
    student: Tensor, teacher: Tensor, head: Tensor, loss: RowLoss, *, chunk: int | None = None
) -> SoftLoss:
    """Compare the laws of `student` (M, D) with those of `teacher` (M, D) under the output matrix `head` (V, D).

    The gradient of the student's states is made in the forward pass, `chunk` rows of logits at a time, as
    many as make 6 million unless given; `head` and `teacher` get none.
    """
    chunk = chunk or max(1, _MOST_LOGITS // len(head))
    losses, overlap, agrees = _Distillation.apply(student, teacher, head, loss, chunk)  # type: ignore[no-untyped-call]
    return SoftLoss(losses, overlap, agrees)


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, head: Tensor, loss: RowLoss, chunk: int
    ) -> tuple[Tensor, ...]:
        rows = len(student)
        gradient = torch.empty_like(student)
        losses, overlap = student.new_empty(2, rows, dtype=torch.float32)
        agrees = torch.empty(rows, dtype=torch.bool, device=student.device)
        for begin in range(0, rows, chunk):
            part = slice(begin, begin + chunk)
            logits = F.linear(student[part], head).float()
            wanted = F.linear(teacher[part], head).float()
            agrees[part] = logits.argmax(-1) == wanted.argmax(-1)
            overlap[part] = torch.minimum(logits.softmax(-1), wanted.softmax(-1)).sum(-1)
            numbers = torch.arange(begin, begin + len(logits), device=student.device)
            losses[part], slopes = loss(logits, wanted, numbers)
            gradient[part] = slopes.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(overlap, agrees)
        return losses, overlap, agrees

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype)[:, None], None, None, None, None
