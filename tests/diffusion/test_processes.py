"""Processes against their contract, and their numbers at the ends of time."""

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion import PROCESSES, SCHEDULES, Hybrid, Masked, Prediction, Process, Uniform, build_process
from unmask.diffusion.mixture import Levels, Mixture
from unmask.diffusion.schedule import Clipped, Cosine, Linear, Polynomial
from unmask.errors import UsageError
from unmask.testing import check_process

NOISE = ["masked", "uniform", "hybrid", "hybrid:0.4,1.7", "hybrid:0"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial:3", "log-linear:0.01", "clipped"])
@pytest.mark.parametrize("noise", NOISE)
def test_contract(noise: str, schedule: str) -> None:
    check_process(build_process(noise, 4, 4, SCHEDULES.parse(schedule)))


def test_a_mask_far_past_the_vocabulary() -> None:
    check_process(Masked(3, 7, Linear()))
    check_process(Hybrid(3, 7, Linear(), 0.2))


def test_masked_noise_with_a_mask_of_the_vocabulary() -> None:
    process = Masked(4, 3, Linear())
    assert process.num_states == 4
    law = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(2, 4)
    half, now = torch.tensor(0.25), torch.tensor(0.5)
    found = process.posterior(law, torch.tensor([3, 1]), half, now)
    assert found.tolist() == [pytest.approx([0.25, 0.15, 0.1, 0.5]), [0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "process"),
    [
        ("masked", Masked(5, 9, Cosine())),
        ("uniform", Uniform(5, None, Cosine())),
        ("hybrid", Hybrid(5, 9, Cosine(), 0.1, 1.0)),
        ("hybrid:0.3", Hybrid(5, 9, Cosine(), 0.3, 1.0)),
        ("hybrid:0.3,2", Hybrid(5, 9, Cosine(), 0.3, 2.0)),
    ],
)
def test_build(text: str, process: Process) -> None:
    assert build_process(text, 5, 9, Cosine()) == process
    assert PROCESSES.get(text.partition(":")[0]) is type(process)


@pytest.mark.parametrize(
    ("text", "mask", "message"),
    [
        ("mask", 9, "did you mean 'masked'?"),
        ("masked:1", 9, "takes at most 0 number(s), 1 were given"),
        ("masked", None, "mask_token_id=None must be a token id"),
        ("hybrid:1", 9, "uniform_share=1.0 must be in [0, 1)"),
        ("hybrid:0.1,3", 9, "gamma=3.0 must be above 0 and at most 2"),
        ("hybrid", 4, "mask_token_id=4 is one of the 5 clean tokens"),
    ],
)
def test_build_refuses(text: str, mask: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        build_process(text, 5, mask, Linear())


def test_uniform_noise_refuses_a_mask() -> None:
    with pytest.raises(UsageError, match="there is no mask token"):
        Uniform(5, 5, Linear())


@given(st.sampled_from(NOISE), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(2, 6))
def test_kernels_compose(noise: str, a: float, b: float, c: float, vocab_size: int) -> None:
    """Chapman-Kolmogorov, at any three times."""
    process = build_process(noise, vocab_size, vocab_size, Linear())
    states = torch.arange(process.num_states)
    s, u, t = torch.tensor(sorted((a, b, c)), dtype=torch.float64)
    composed = process.transition(states, s, u) @ process.transition(states, u, t)
    assert torch.allclose(composed, process.transition(states, s, t), atol=1e-9)


@given(st.sampled_from(NOISE), st.floats(1e-6, 1 - 1e-6), st.integers(0, 2**32))
def test_converting_there_and_back(noise: str, t: float, seed: int) -> None:
    process = build_process(noise, 5, 5, Polynomial(2.0))
    generator = torch.Generator().manual_seed(seed)
    law = torch.randn(7, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    x0 = torch.randint(5, (7,), generator=generator)
    time = torch.tensor(t, dtype=torch.float64)
    xt = process.corrupt(x0, time, generator)
    there = process.convert(law, xt, time, source="leave_one_out", target="posterior")
    if isinstance(process, Masked):
        law, there, xt = law[xt == 5], there[xt == 5], xt[xt == 5]  # a visible token's posterior is certain
    back = process.convert(there, xt, time, source="posterior", target="leave_one_out")
    assert torch.allclose(back, law, atol=1e-7)
    assert torch.allclose(there.exp().sum(-1), torch.ones(len(there)).double())


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.3, 0.999, 1 - 1e-6])
def test_float32_is_float64_rounded(noise: str, t: float) -> None:
    size = 4096
    process = build_process(noise, size, size, Linear())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(size, (64,), generator=generator)
    time = torch.tensor(t, dtype=torch.float64)
    xt = process.corrupt(x0, time, generator)
    xt[:8] = x0[:8]
    logits = 3 * torch.randn(64, size, generator=generator, dtype=torch.float64)
    logits[:32].scatter_add_(-1, x0[:32, None], torch.full((32, 1), 12.0).double())
    wide = process.nll(logits.log_softmax(-1), x0, xt, time)
    narrow = process.nll(logits.float().log_softmax(-1), x0, xt, time)
    assert torch.allclose(narrow.double(), wide, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("t", [0.1, 0.9])
def test_the_gradient_is_the_derivative(noise: str, t: float) -> None:
    process = build_process(noise, 3, 3, Cosine())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.tensor([0, 1, 2, 0, 1])
    xt = torch.tensor([0, 2, 2, min(3, process.num_states - 1), 1])
    time = torch.full((5,), t, dtype=torch.float64)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def losses(logits: Tensor) -> Tensor:
        law = logits.log_softmax(-1)
        other: Prediction = "posterior" if process.prediction == "leave_one_out" else "leave_one_out"
        turned = process.convert(law, xt, time, source=other, target=process.prediction)
        crossed = process.cross_entropy(law, x0, xt, time, source=process.prediction)
        return torch.cat([process.nll(law, x0, xt, time), process.nll(turned, x0, xt, time), crossed])

    assert torch.autograd.gradcheck(losses, (logits,))


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("t", [0.0, 1e-12, 0.5, 1.0])
def test_gradients_bear_tokens_that_were_ruled_out(noise: str, t: float) -> None:
    process = build_process(noise, 4, 4, Linear())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(3, (40,), generator=generator)
    time = torch.tensor(t, dtype=torch.float64)
    xt = process.corrupt(x0, time, generator)
    logits = torch.randn(40, 4, generator=generator)
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    process.nll(logits.log_softmax(-1), x0, xt, time).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_every_token_may_have_its_own_time() -> None:
    generator = torch.Generator().manual_seed(0)
    time = torch.tensor([[0.2, 0.8], [0.5, 0.6]], dtype=torch.float64)
    for noise in NOISE:
        process = build_process(noise, 4, 4, Linear())
        x0 = torch.randint(4, (2, 2), generator=generator)
        xt = process.corrupt(x0, time, generator)
        law = torch.randn(2, 2, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
        for row in range(2):
            for place in range(2):
                at = (row, place)
                alone = process.nll(law[at], x0[at], xt[at], time[at])
                assert torch.allclose(process.nll(law, x0, xt, time)[at], alone)
                step = process.posterior(law[at], xt[at], time[at] / 2, time[at])
                assert torch.allclose(process.posterior(law, xt, time / 2, time)[at], step)


def test_noise_depends_on_the_generator_alone() -> None:
    x0 = torch.arange(12).reshape(3, 4) % 4
    for noise in NOISE:
        process = build_process(noise, 4, 4, Linear())
        one, two, three = (
            process.corrupt(x0, torch.tensor([[0.5]]), torch.Generator().manual_seed(seed))
            for seed in (7, 7, 8)
        )
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


def test_a_clipped_schedule_leaves_tokens_in_the_prior() -> None:
    process = Uniform(4, None, Clipped(0.0, 0.5))
    law = process.marginal(torch.tensor(0), torch.tensor(1.0))
    wanted = float((law * (law * 4).log()).sum())  # the prior is uniform
    assert float(process.prior_nll(torch.tensor(0))) == pytest.approx(wanted)


@dataclass(frozen=True)
class Faulty(Mixture):
    """Masked noise with one chosen fault."""

    fault: str = "none"

    prediction = "posterior"
    masks = True

    @property
    def sound(self) -> Masked:
        return Masked(self.vocab_size, self.mask_token_id, self.schedule)

    def levels(self, t: Tensor) -> Levels:
        levels = self.sound.levels(t)
        if self.fault == "marginal":
            return levels._replace(alpha=levels.alpha**2, mask=1 - levels.alpha**2 + 0.1)
        return levels

    def posterior(self, prediction: Tensor, xt: Tensor, s: Tensor, t: Tensor) -> Tensor:
        if self.fault == "posterior":
            s = (s + t) / 2
        return self.sound.posterior(prediction.double() if self.fault == "dtype" else prediction, xt, s, t)

    def nll(self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        nats = self.sound.nll(prediction, x0, xt, t)
        if self.fault == "gradient":
            return nats + (0 * prediction[..., 0]).sqrt()
        return {"weight": nats * 1.01, "sign": -nats, "blind": 0 * nats}.get(self.fault, nats)

    def cross_entropy(
        self, prediction: Tensor, x0: Tensor, xt: Tensor, t: Tensor, *, source: Prediction
    ) -> Tensor:
        law = 2 * prediction if self.fault == "cross entropy" else prediction
        return self.sound.cross_entropy(law, x0, xt, t, source=source)

    def convert(
        self, prediction: Tensor, xt: Tensor, t: Tensor, *, source: Prediction, target: Prediction
    ) -> Tensor:
        if self.fault == "convert":
            return prediction
        return self.sound.convert(prediction, xt, t, source=source, target=target)


@pytest.mark.parametrize(
    "fault",
    ["marginal", "posterior", "dtype", "weight", "sign", "blind", "gradient", "cross entropy", "convert"],
)
def test_the_check_finds_faults(fault: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        check_process(Faulty(4, 4, Linear(), fault))


def test_the_check_passes_the_faultless() -> None:
    check_process(Faulty(4, 4, Linear()))


def test_the_check_refuses_a_large_vocabulary() -> None:
    with pytest.raises(ValueError, match="has 1001 states"):
        check_process(Masked(1000, 1000, Linear()))
