"""The chunked losses against the same things written with whole logits and autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.training.soft_targets import AcceptanceLoss, EitherLoss, SoftCrossEntropy, distil

ROWS, SIZE, VOCAB = 11, 6, 13


@pytest.fixture
def states() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student, teacher and head, and a weight for each row."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(ROWS, SIZE, generator=generator, requires_grad=True)
    teacher, head = (
        torch.randn(ROWS, SIZE, generator=generator),
        torch.randn(VOCAB, SIZE, generator=generator),
    )
    return student, teacher, head, torch.rand(ROWS, generator=generator)


def test_soft_cross_entropy(states: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    student, teacher, head, weights = states
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    shares = torch.rand(ROWS, generator=generator)
    p, log_q = (teacher @ head.T).softmax(-1), (student @ head.T).log_softmax(-1)
    target = p * (1 - shares[:, None]) + F.one_hot(labels, VOCAB) * shares[:, None]
    expected = -(target * log_q).sum(-1)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), student)

    result = distil(student, teacher, head, SoftCrossEntropy(labels, shares), chunk=4)
    (result.losses * weights).sum().backward()
    torch.testing.assert_close(result.losses, expected)
    torch.testing.assert_close(student.grad, gradient)
    torch.testing.assert_close(result.overlap, torch.minimum(p, log_q.exp()).sum(-1))
    assert torch.equal(result.agrees, p.argmax(-1) == log_q.argmax(-1))


@pytest.mark.parametrize("support", [3, VOCAB, 100])
def test_acceptance_loss(states: tuple[Tensor, Tensor, Tensor, Tensor], support: int) -> None:
    student, teacher, head, weights = states
    loss = AcceptanceLoss(support=support, temperature=2.0, eta=0.7)
    expected = []
    for student_logits, teacher_logits in zip(student @ head.T, teacher @ head.T, strict=True):
        likeliest = [
            logits.topk(min(support, VOCAB)).indices.tolist() for logits in (student_logits, teacher_logits)
        ]
        tokens = sorted({token for tokens in likeliest for token in tokens})
        p, q = (teacher_logits[tokens] / 2).softmax(-1), (student_logits[tokens] / 2).softmax(-1)
        alpha = torch.minimum(p, q).sum()
        mix = torch.exp(-0.7 * alpha.detach())
        favourite = tokens.index(int(teacher_logits.argmax()))
        expected.append(
            mix * (p * (p / q).log()).sum()
            + (1 - mix) * (1 - alpha)
            - student_logits[tokens].log_softmax(-1)[favourite]
        )
    (gradient,) = torch.autograd.grad((torch.stack(expected) * weights).sum(), student)

    result = distil(student, teacher, head, loss, chunk=4)
    (result.losses * weights).sum().backward()
    torch.testing.assert_close(result.losses, torch.stack(expected))
    torch.testing.assert_close(student.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_cold_teacher_names_one_token(states: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    student, teacher, head, _ = states
    loss = SoftCrossEntropy(torch.zeros(ROWS, dtype=torch.int64), torch.zeros(ROWS), temperature=1e-3)
    found = distil(student, teacher, head, loss, chunk=4).losses
    favourites = (teacher @ head.T).argmax(-1)
    torch.testing.assert_close(found, F.cross_entropy(student @ head.T, favourites, reduction="none"))


def test_each_row_has_the_loss_that_was_chosen(states: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    student, teacher, head, _ = states
    labels, shares = torch.zeros(ROWS, dtype=torch.int64), torch.full((ROWS,), 0.5)
    both = (AcceptanceLoss(support=5), SoftCrossEntropy(labels, shares))
    chosen = torch.arange(ROWS) % 3 == 0
    slopes, losses = [], []
    for loss in (*both, EitherLoss(chosen, *both)):
        found = distil(student, teacher, head, loss, chunk=4).losses
        (slope,) = torch.autograd.grad(found.sum(), student)
        losses.append(found.detach())
        slopes.append(slope)
    assert torch.equal(losses[2], torch.where(chosen, losses[0], losses[1]))
    assert torch.equal(slopes[2], torch.where(chosen[:, None], slopes[0], slopes[1]))
