"""Schedules of Gaussian noise: what all keep, and what the learning ones learn."""

import math

import pytest
import torch
from gaussian_toys import WIDE
from torch import Tensor

from unmask.diffusion.gaussian_schedule import (
    GAUSSIAN_SCHEDULES,
    GaussianSchedule,
    GumbelGamma,
    LearnedGamma,
    LinearGamma,
)
from unmask.errors import UsageError

TIMES = torch.linspace(0, 1, 1001, dtype=torch.float64)


def uneven(num_bins: int = 8) -> LearnedGamma:
    schedule = LearnedGamma(-5, 6, num_bins)
    schedule.logits.data = 0.2 * torch.randn(num_bins, generator=torch.Generator().manual_seed(0))
    return schedule


@pytest.mark.parametrize("schedule", [WIDE, LearnedGamma(), uneven(), GumbelGamma()], ids=repr)
def test_gamma_rises_from_end_to_end_by_its_slope(schedule: GaussianSchedule) -> None:
    gamma = schedule.gamma(TIMES).detach()
    low, high = (float(end.detach()) for end in schedule.ends())
    assert gamma.dtype == torch.float64
    assert (gamma.diff() > 0).all()
    assert (float(gamma[0]), float(gamma[-1])) == pytest.approx((low, high))
    inside = (torch.arange(1, 400, dtype=torch.float64) + 0.3) / 401  # no bin begins there
    rise = (schedule.gamma(inside + 1e-7) - schedule.gamma(inside - 1e-7)) / 2e-7
    torch.testing.assert_close(schedule.slope(inside).detach(), rise.detach(), rtol=1e-5, atol=1e-5)
    levels = schedule.levels(10)
    torch.testing.assert_close(levels, gamma[::100].flip(0))
    assert not levels.requires_grad


def test_ends_are_the_ones_asked_for() -> None:
    for schedule in (LinearGamma(-3, 4), LearnedGamma(-3, 4, 5)):
        assert [float(end.detach()) for end in schedule.ends()] == pytest.approx([-3, 4], abs=1e-6)
    low, high = GumbelGamma(1.0, 2.0, 0.01).ends()
    assert float(low) == pytest.approx(1 - 2 * math.log(-math.log(0.01)))
    assert float(high) == pytest.approx(1 - 2 * math.log(-math.log(0.99)))


def integrand(gamma: Tensor) -> Tensor:
    """A bound's integrand per unit of gamma, all of it in a narrow band."""
    return 3 * (-(gamma - 1).square() / 2).exp()


def test_the_learned_schedule_loses_variance_and_keeps_mean_order_and_ends() -> None:
    schedule = LearnedGamma(-8, 8, 32)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)

    def moments() -> tuple[float, float]:
        estimates = (schedule.slope(TIMES) * integrand(schedule.gamma(TIMES))).detach()
        return float(estimates.mean()), float(estimates.var())

    mean, variance = moments()
    for _ in range(150):
        t = torch.rand(64, dtype=torch.float64, generator=generator)
        estimates = schedule.slope(t) * integrand(schedule.gamma(t))
        optimizer.zero_grad()
        schedule.fit_loss(t, estimates, estimates).backward()
        optimizer.step()
    assert (schedule.gamma(TIMES).diff() > 0).all()
    assert [float(end.detach()) for end in schedule.ends()] == pytest.approx([-8, 8])
    learned_mean, learned_variance = moments()
    assert learned_mean == pytest.approx(mean, rel=0.01)
    assert learned_variance < 0.1 * variance


def test_the_variance_objective_has_the_gradient_of_the_mean_square() -> None:
    # The mean square in closed form, bin by bin: the integral of f^2 over each bin, over the bin's density.
    schedule, size = uneven(), 8
    grid = (torch.arange(size * 200, dtype=torch.float64) + 0.5) / (size * 200)
    squares = integrand(-5 + 11 * grid).square().view(size, 200).mean(-1) * 11 / size
    chances = 0.9 * (10 * schedule.logits.double()).softmax(-1) + 0.1 / size
    (truth,) = torch.autograd.grad((squares / (chances / (11 / size))).sum(), schedule.logits)
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    estimates = (schedule.slope(t) * integrand(schedule.gamma(t))).detach()
    scale = float(estimates.square().mean())
    (found,) = torch.autograd.grad(schedule.fit_loss(t, estimates, estimates), schedule.logits)
    torch.testing.assert_close(found * scale, truth, rtol=2e-3, atol=1e-4 * float(truth.abs().max()))


def test_the_bound_trains_the_learned_ends_and_nothing_between() -> None:
    schedule = uneven()
    total = (schedule.slope(TIMES) * integrand(schedule.gamma(TIMES))).sum()
    total.backward()
    assert schedule.logits.grad is None
    assert schedule.middle.grad is not None
    assert schedule.log_width.grad is not None


def test_the_gumbel_schedule_finds_where_the_information_is() -> None:
    schedule = GumbelGamma(4.0, 0.8)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        t = torch.rand(64, dtype=torch.float64, generator=generator)
        gamma = schedule.gamma(t)
        entropy = 6.0 * (-(-(gamma - 2.5) / 1.2).exp()).exp()
        optimizer.zero_grad()
        schedule.fit_loss(t, entropy, entropy).backward()
        optimizer.step()
    assert float(schedule.fitted_location.detach()) == pytest.approx(2.5, abs=0.05)
    assert float(schedule.log_scale.detach().exp()) == pytest.approx(1.2, rel=0.05)
    # Information is uniform in time.
    even = 6.0 * (-(-(schedule.gamma(TIMES) - 2.5) / 1.2).exp()).exp()
    torch.testing.assert_close(even, 6 * TIMES, rtol=0, atol=0.25)


def test_texts_mean_schedules() -> None:
    assert set(GAUSSIAN_SCHEDULES.names()) == {"linear", "learned", "gumbel"}
    parsed = GAUSSIAN_SCHEDULES.parse("learned:-3,4,5")
    assert isinstance(parsed, LearnedGamma)
    assert (parsed.low, parsed.high, parsed.num_bins) == (-3, 4, 5)
    names = set(dict(GumbelGamma().named_parameters()))
    assert names == {"fitted_location", "log_scale"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear:2,-2", "must rise"),
        ("learned:-90,3", "between"),
        ("learned:-3,3,0", "num_bins=0"),
        ("gumbel:0,-1", "scale=-1.0"),
        ("gumbel:0,1,0.7", "cut=0.7"),
        ("gumbel:0,9", "between"),
        ("linear:nan,3", "must rise"),
    ],
)
def test_schedules_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GAUSSIAN_SCHEDULES.parse(text)
