"""Few steps on the law of two templates: where independent tokens cannot go, and where shared noise leads."""

import math

import torch
from gaussian_toys import DIEGO, NEW, SAN, SQUARE, YORK, Exact, templates
from torch import Tensor, nn

from unmask.diffusion.flow_end import flow_end, flow_end_loss
from unmask.diffusion.gaussian import Gaussian
from unmask.diffusion.gaussian_objective import noise_rows
from unmask.diffusion.gaussian_schedule import LinearGamma

LAW = templates()
PROCESS = Gaussian(SQUARE, LinearGamma(-6.0, 6.0))
TEACHER = Exact(LAW, PROCESS)
WALL = math.log(2)
"""The least divergence of a law of independent tokens from the templates: the entropy of either token."""


class Student(nn.Module):
    """Logits of both tokens from the noise of both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 8)
        )

    def forward(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        features = torch.cat([noisy.flatten(1), gamma[:, :1] / 6], -1)
        logits: Tensor = self.layers(features.to(torch.float32))
        return logits.view(-1, 2, 4).double()


def divergence(laws: Tensor) -> float:
    """Return KL(templates || what one forward writes), given the laws (M, 2, 4) of both tokens under M noises."""
    written = [
        float((laws[:, 0, first] * laws[:, 1, second]).mean())
        for first, second in ((NEW, YORK), (SAN, DIEGO))
    ]
    return -sum(math.log(2 * chance) for chance in written) / 2


def test_the_teachers_flow_ends_in_a_template() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = LAW.sample(200, generator)
    t = torch.ones(200, dtype=torch.float64)
    trained = torch.ones_like(x0, dtype=torch.bool)
    noised = noise_rows(x0, PROCESS, t, PROCESS.schedule.gamma(t), generator, trained=trained)
    ends = flow_end(TEACHER, x0, noised, PROCESS, num_steps=16).softmax(-1)
    assert float((ends.max(-1).values > 0.99).double().mean()) > 0.95
    sure = ends.argmax(-1)
    assert ((sure[:, 0] == NEW) == (sure[:, 1] == YORK)).all()
    assert divergence(ends) < 0.02
    late = noise_rows(x0, PROCESS, t / 4, PROCESS.schedule.gamma(t / 4), generator, trained=trained)
    near = flow_end(TEACHER, x0, late, PROCESS, num_steps=4).argmax(-1)
    assert float((near == x0).double().mean()) > 0.95  # from little noise it leads back


def test_given_tokens_lead_the_flow() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.tensor([[SAN, 0]]).expand(50, -1)
    t = torch.ones(50, dtype=torch.float64)
    trained = torch.tensor([False, True]).expand(50, -1)
    noised = noise_rows(x0, PROCESS, t, PROCESS.schedule.gamma(t), generator, trained=trained)
    ends = flow_end(TEACHER, x0, noised, PROCESS, num_steps=8)
    assert (ends.argmax(-1)[:, 1] == DIEGO).all()


def test_one_step_of_independent_tokens_goes_through_the_wall_by_shared_noise() -> None:
    """A student of masks has one law for both tokens, whatever it learns; a student of noise has one for each noise."""
    torch.manual_seed(0)
    masked = nn.Parameter(torch.randn(2, 4, dtype=torch.float64))
    student = Student()
    groups = [{"params": student.parameters(), "lr": 1e-2}, {"params": [masked], "lr": 0.1}]
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        x0 = LAW.sample(128, generator)
        loss = flow_end_loss(student, TEACHER, x0, PROCESS, generator, num_steps=12)
        assert loss.num_tokens == 256
        discrete = -masked.log_softmax(-1).expand(128, 2, 4).gather(-1, x0[..., None]).sum()
        optimizer.zero_grad()
        ((loss.total + discrete) / loss.num_tokens).backward()
        optimizer.step()
    noise = torch.randn(4000, 2, 2, dtype=torch.float64, generator=generator)
    _, high = PROCESS.schedule.ends()
    with torch.no_grad():
        through = divergence(student(noise, high.expand(4000, 2)).softmax(-1))
        wall = divergence(masked.softmax(-1)[None])
        teacher = divergence(TEACHER(noise, high.expand(4000, 2)).softmax(-1))
    assert abs(wall - WALL) < 0.03
    assert abs(teacher - WALL) < 0.02  # the teacher itself needs many steps
    assert through < 0.1
