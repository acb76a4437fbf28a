"""The chunked soft cross-entropy against the same thing written with whole logits and autograd."""

import torch
import torch.nn.functional as F

from unmask.training.soft_targets import SoftTargets, soft_cross_entropy


def test_loss_gradient_and_acceptance_equal_the_plain_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, size, vocab = 11, 6, 13
    student = torch.randn(rows, size, generator=generator, requires_grad=True)
    teacher = torch.randn(rows, size, generator=generator)
    head = torch.randn(vocab, size, generator=generator)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    shares, weights = torch.rand(rows, generator=generator), torch.rand(rows, generator=generator)

    p, log_q = (teacher @ head.T).softmax(-1), (student @ head.T).log_softmax(-1)
    target = p * (1 - shares[:, None]) + F.one_hot(labels, vocab) * shares[:, None]
    expected = (-(target * log_q).sum(-1) * weights).sum()
    (gradient,) = torch.autograd.grad(3 * expected, student)

    result = soft_cross_entropy(student, SoftTargets(teacher, labels, shares, weights), head, chunk=4)
    (3 * result.loss).backward()
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(student.grad, gradient)
    torch.testing.assert_close(result.overlap, torch.minimum(p, log_q.exp()).sum(-1))
    assert torch.equal(result.agrees, p.argmax(-1) == log_q.argmax(-1))
