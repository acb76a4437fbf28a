"""The sampled losses of Gaussian noise: unbiased, over the tokens they say, training what they should."""

import pytest
import torch
from enumerated import Table
from gaussian_toys import LINE, SQUARE, Alone, Bold, Exact, Grid, on_a_line, templates
from torch import Tensor, nn

from unmask.diffusion.gaussian import Gaussian, Informed
from unmask.diffusion.gaussian_objective import gaussian_loss, given_rows
from unmask.diffusion.gaussian_schedule import GaussianSchedule, LearnedGamma, LinearGamma
from unmask.diffusion.times import stratified_times

MILD = LinearGamma(-4.0, 6.0)
"""No rare term weighs much."""


def uneven() -> LearnedGamma:
    schedule = LearnedGamma(-4.0, 6.0, 6)
    schedule.logits.data = 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(0))
    return schedule


def mean_and_error(draws: list[float]) -> tuple[float, float]:
    values = torch.tensor(draws, dtype=torch.float64)
    return float(values.mean()), float(values.std() / len(draws) ** 0.5)


@pytest.mark.parametrize("schedule", [MILD, uneven()], ids=repr)
def test_the_bound_is_unbiased_for_an_imperfect_denoiser(schedule: GaussianSchedule) -> None:
    table = Table.random(3, 1)
    process = on_a_line(table, schedule)
    denoiser = Bold(Exact(table, process))
    truth = Grid(process, table, num_times=61).bound(denoiser)
    assert truth > table.entropy + 0.02
    generator = torch.Generator().manual_seed(1)
    draws = [
        float(gaussian_loss(denoiser, table.sample(128, generator), process, generator).total.detach()) / 128
        for _ in range(200)
    ]
    mean, error = mean_and_error(draws)
    assert abs(mean - truth) < 3 * error
    assert error < 0.08 * truth


def test_the_cross_entropy_is_unbiased_and_the_exact_denoiser_minimises_it() -> None:
    table = templates()
    process = Gaussian(SQUARE, LinearGamma(-0.5, 0.5))

    def draws(denoiser: Exact | Alone | Bold) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(1)
        losses = [
            gaussian_loss(
                denoiser, table.sample(64, generator), process, generator, weighting="cross_entropy"
            )
            for _ in range(50)
        ]
        return mean_and_error([float(loss.total) / 64 for loss in losses])

    exact = Exact(table, process)
    best, error = draws(exact)
    # By its definition, from noise of another generator and unstratified times.
    generator = torch.Generator().manual_seed(9)
    x0 = table.sample(20_000, generator)
    gamma = process.schedule.gamma(torch.rand(20_000, 1, dtype=torch.float64, generator=generator))
    law = exact(process.corrupt(x0, gamma, generator), gamma).log_softmax(-1)
    nats = -law.gather(-1, x0[..., None]).sum((-1, -2))
    other_error = float(nats.std()) / 20_000**0.5
    assert abs(best - float(nats.mean())) < 3 * (error**2 + other_error**2) ** 0.5
    assert draws(Alone(table, process))[0] > best + 5 * error
    assert draws(Bold(exact))[0] > best


def test_times_are_uniform_and_one_in_each_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([stratified_times(5, generator) for _ in range(2000)])
    assert ((times.sort(-1).values * 5).long() == torch.arange(5)).all()
    assert times.mean(0).tolist() == pytest.approx([0.5] * 5, abs=0.03)


def test_given_tokens_are_shown_clean_and_cost_nothing() -> None:
    table = Table.random(3, 2)
    process = on_a_line(table)
    trained = torch.tensor([[True, False], [False, False]])
    x0 = torch.tensor([[0, 1], [2, 2]])
    seen: list[tuple[Tensor, Tensor]] = []

    def denoiser(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        seen.append((noisy, gamma))
        return torch.zeros(*noisy.shape[:-1], 3, dtype=torch.float64)

    loss = gaussian_loss(denoiser, x0, process, torch.Generator().manual_seed(0), trained=trained)
    assert loss.num_tokens == 1
    ((noisy, gamma),) = seen
    torch.testing.assert_close(noisy[~trained], given_rows(x0, process)[~trained])
    torch.testing.assert_close(given_rows(x0, process), process.embed(x0), rtol=1e-3, atol=1e-3)
    assert (gamma[~trained] == -9).all()
    assert not (gamma[trained] == -9).any()
    nothing = gaussian_loss(
        denoiser, x0, process, torch.Generator(), trained=torch.zeros(2, 2, dtype=torch.bool)
    )
    assert (float(nothing.total), nothing.num_tokens) == (0, 0)


def test_a_share_of_the_rows_sees_a_belief() -> None:
    process, x0 = Gaussian(LINE, MILD), torch.zeros(400, 2, dtype=torch.int64)
    beliefs: list[Tensor | None] = []

    def denoiser(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        beliefs.append(belief)
        return process.evidence(noisy, gamma)

    gaussian_loss(denoiser, x0, process, torch.Generator().manual_seed(0), belief_share=0.25)
    first, second = beliefs
    assert first is None
    assert second is not None
    sums = second.sum(-1)
    has_one = sums[:, 0] > 0.5
    torch.testing.assert_close(sums, has_one[:, None].double().expand_as(sums))
    assert 60 < int(has_one.sum()) < 140


class Small(nn.Module):
    """A network of all noisy tokens at once, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 8)

    def forward(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        features = torch.cat([noisy.flatten(1), gamma[:, :1].to(noisy.dtype)], -1)
        logits: Tensor = self.map(features)
        return logits.view(len(noisy), 2, 4)


@pytest.mark.parametrize("schedule", [LearnedGamma(-30, 30, 6), LearnedGamma(-5, 6, 6)], ids=repr)
def test_gradients_are_finite_and_go_where_they_should(schedule: LearnedGamma) -> None:
    network, table = Small(), SQUARE.float().requires_grad_()
    process, x0 = Gaussian(table, schedule), templates().sample(32, torch.Generator().manual_seed(0))
    ends = [schedule.middle, schedule.log_width]
    everything = [*network.parameters(), table, *ends, schedule.logits]
    loss = gaussian_loss(network, x0, process, torch.Generator().manual_seed(0))
    by_total = torch.autograd.grad(loss.total, everything, retain_graph=True, allow_unused=True)
    by_fit = torch.autograd.grad(loss.fit, everything, allow_unused=True)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in by_total[:-1])
    assert by_total[-1] is None
    assert all(gradient is None for gradient in by_fit[:-1])
    assert by_fit[-1] is not None
    assert by_fit[-1].isfinite().all()
    plain = gaussian_loss(
        network, x0, process, torch.Generator().manual_seed(0), weighting="cross_entropy"
    ).total
    gradients = torch.autograd.grad(plain, everything, allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [True, True, True, False, False, False]


def test_the_ends_follow_the_slope_of_the_bound() -> None:
    """The gradient of the sampled loss by the ends is that of the bound itself, as a difference of sums over a grid."""
    table, truth = Table.random(3, 1), {}
    for name in ("middle", "log_width"):
        sides = []
        for shift in (0.05, -0.05):
            schedule = LearnedGamma(-2.0, 1.5, 6)
            getattr(schedule, name).data += shift
            process = on_a_line(table, schedule)
            sides.append(Grid(process, table, num_times=41).bound(Bold(Exact(table, process))))
        truth[name] = (sides[0] - sides[1]) / 0.1
    schedule = LearnedGamma(-2.0, 1.5, 6)
    process, generator = on_a_line(table, schedule), torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {name: [] for name in truth}
    for _ in range(150):
        schedule.zero_grad()
        loss = gaussian_loss(Bold(Exact(table, process)), table.sample(64, generator), process, generator)
        (loss.total / 64).backward()
        for name, values in found.items():
            values.append(float(getattr(schedule, name).grad))
    for name, values in found.items():
        mean, error = mean_and_error(values)
        assert abs(mean - truth[name]) < 3 * error + 2e-3, name
        assert error < 0.03


def test_training_by_the_bound_comes_near_the_entropy() -> None:
    """A tiny network, its embeddings and its schedule, from scratch."""
    torch.manual_seed(0)
    law = templates()
    network = nn.Sequential(nn.Linear(5, 32), nn.SiLU(), nn.Linear(32, 8))
    free = nn.Parameter(torch.randn(4, 2))
    schedule = LearnedGamma(-6, 6, 16)
    groups = [
        {"params": [*network.parameters(), free], "lr": 0.02},
        {"params": schedule.parameters(), "lr": 0.002},
    ]
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(90):
        process = Gaussian(nn.functional.normalize(free, dim=-1), schedule)

        def denoiser(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
            features = torch.cat([noisy.flatten(1), gamma[:, :1].to(noisy.dtype) / 6], -1)
            logits: Tensor = network(features)
            return logits.view(-1, 2, 4)

        loss = gaussian_loss(Informed(denoiser, process), law.sample(64, generator), process, generator)
        optimizer.zero_grad()
        (loss.total / loss.num_tokens + loss.fit).backward()
        optimizer.step()
        losses.append(float(loss.total.detach()) / 64)
    tail = torch.tensor(losses[-40:])
    assert law.entropy - 0.05 < float(tail.mean()) < 1.25 * law.entropy
