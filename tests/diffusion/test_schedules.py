"""Schedules against their contract and their definitions."""

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion import SCHEDULES, Schedule
from unmask.diffusion.schedule import Clipped, Cosine, Linear, LogLinear, Polynomial
from unmask.errors import UsageError
from unmask.testing import check_schedule

OURS = [
    Linear(),
    Cosine(),
    Polynomial(),
    Polynomial(0.5),
    Polynomial(3.0),
    LogLinear(),
    Clipped(),
    Clipped(0.0, 1.0),
]


@pytest.mark.parametrize("schedule", OURS, ids=repr)
def test_contract(schedule: Schedule) -> None:
    check_schedule(schedule)


@given(st.sampled_from(OURS), st.floats(0, 1))
def test_time_of_undoes_alpha(schedule: Schedule, t: float) -> None:
    alpha = schedule.alpha(torch.tensor(t, dtype=torch.float64))
    assert torch.allclose(schedule.alpha(schedule.time_of(alpha)), alpha, atol=1e-12, rtol=0)


def test_an_alpha_never_reached_gives_the_nearer_end() -> None:
    assert Clipped(0.3, 0.8).time_of(torch.tensor([0.9, 0.1])).tolist() == [0.0, 1.0]
    assert LogLinear(0.01).time_of(torch.tensor([0.0])).tolist() == [1.0]


def test_a_cosine_keeps_its_digits_near_the_end() -> None:
    left = torch.tensor(1e-9, dtype=torch.float64)
    assert float(Cosine().alpha(1 - left)) == pytest.approx((torch.pi / 2 * 1e-9) ** 2 / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("linear", Linear()),
        ("cosine", Cosine()),
        ("polynomial:3", Polynomial(3.0)),
        ("log-linear", LogLinear(1e-3)),
        ("clipped:0.45,0.95", Clipped(0.45, 0.95)),
    ],
)
def test_parse(text: str, schedule: Schedule) -> None:
    assert SCHEDULES.parse(text) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner", "did you mean 'linear'?"),
        ("polynomial:0", "power=0.0 must be above 0 and finite"),
        ("log-linear:1", "epsilon=1.0 must be in [0, 1)"),
        ("clipped:0.8,0.3", "must be 0 <= low < high <= 1"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        SCHEDULES.parse(text)


@dataclass(frozen=True)
class Faulty(Schedule):
    """The linear schedule with one chosen fault."""

    fault: str

    def alpha(self, t: Tensor) -> Tensor:
        return {"rises": t, "high": 1.5 - t, "scalar": 1 - t.reshape(-1)}.get(self.fault, 1 - t)

    def alpha_prime(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -2.0 if self.fault == "slope" else -1.0)

    def time_of(self, alpha: Tensor) -> Tensor:
        if self.fault == "dtype":
            return (1 - alpha).double()
        return alpha if self.fault == "inverse" else 1 - alpha


@pytest.mark.parametrize("fault", ["rises", "high", "scalar", "slope", "inverse", "dtype"])
def test_the_check_finds_faults(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_schedule(Faulty(fault))


def test_the_check_passes_the_faultless() -> None:
    check_schedule(Faulty("none"))
