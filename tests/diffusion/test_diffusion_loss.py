"""The sampled loss: unbiased for the bound, and over the tokens it says."""

import pytest
import torch
from enumerated import Table
from torch import Tensor

from unmask.diffusion import (
    SCHEDULES,
    TIMES,
    DenoiserFunction,
    ExactCount,
    Independent,
    LowDiscrepancy,
    Masked,
    Prediction,
    Process,
    Uniform,
    build_process,
    diffusion_loss,
    token_losses,
)
from unmask.diffusion.markov import MarkovChain
from unmask.diffusion.schedule import Linear
from unmask.errors import UsageError

NUM_ROWS = 8000
MILD = "polynomial:4"
"""The integrand's variance is finite: about 1/t^2 at a chance of t^4 (masks) or t^2 (uniform tokens of the hybrid)."""


def imperfect(process: Process) -> DenoiserFunction:
    """Return a denoiser that answers a token and its left neighbour by fixed random logits, whatever the time."""
    generator = torch.Generator().manual_seed(0)
    size = process.num_states
    logits = torch.randn(size, size, process.vocab_size, generator=generator, dtype=torch.float64)

    def denoise(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        return logits[tokens, tokens.roll(1, -1)]

    return denoise


def sampled(process: Process, table: Table, times: str) -> Tensor:
    """Return losses of batches of eight rows, in nats per sequence."""
    generator = torch.Generator().manual_seed(1)
    x0 = table.sample(NUM_ROWS, generator).reshape(-1, 8, table.length)
    denoise = imperfect(process)
    losses = [diffusion_loss(denoise, rows, process, generator, times=TIMES.parse(times)) for rows in x0]
    assert all(loss.num_tokens == 8 * table.length for loss in losses)
    return torch.stack([loss.total for loss in losses]) / 8


@pytest.mark.parametrize(
    ("noise", "times"),
    [
        ("masked", "independent"),
        ("masked", "low-discrepancy"),
        ("masked", "exact-count"),
        ("uniform", "independent"),
        ("uniform", "low-discrepancy"),
        ("hybrid:0.3", "independent"),
        ("hybrid:0.3", "low-discrepancy"),
    ],
)
def test_the_loss_is_unbiased(noise: str, times: str) -> None:
    process, table = build_process(noise, 3, 3, SCHEDULES.parse(MILD)), Table.random(3, 3)
    denoise = imperfect(process)
    truth = table.bound(process, lambda noisy, t: denoise(noisy, t).log_softmax(-1))
    found = sampled(process, table, times)
    error = float(found.std() / len(found) ** 0.5)
    assert abs(float(found.mean()) - truth) < 3 * error
    assert error < 0.05 * truth


@pytest.mark.parametrize("noise", ["uniform", "hybrid:0.3"])
def test_a_denoiser_of_the_posterior_is_converted(noise: str) -> None:
    process, table = build_process(noise, 3, 3, SCHEDULES.parse("cosine")), Table.random(3, 3)
    denoise = imperfect(process)

    def posterior(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        law = denoise(tokens, time).log_softmax(-1)
        return process.convert(law, tokens, time, source="leave_one_out", target="posterior")

    x0 = table.sample(500, torch.Generator().manual_seed(0))
    wanted = diffusion_loss(denoise, x0, process, torch.Generator().manual_seed(1))
    found = diffusion_loss(posterior, x0, process, torch.Generator().manual_seed(1), prediction="posterior")
    assert float(found.total) == pytest.approx(float(wanted.total), rel=1e-9)


def test_counting_masks_has_the_least_variance() -> None:
    process, table = Masked(3, 3, SCHEDULES.parse(MILD)), Table.random(3, 3)
    names = ("independent", "low-discrepancy", "exact-count")
    one, two, three = (float(sampled(process, table, name).var()) for name in names)
    assert one > two > 3 * three


def test_counting_masks_of_equal_tokens_has_no_variance() -> None:
    process = Masked(4, 4, Linear())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(4, (64, 16), generator=generator)

    def denoise(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        return torch.zeros(*tokens.shape, 4)

    exact = diffusion_loss(denoise, x0, process, generator, times=ExactCount())
    assert float(exact.total) == pytest.approx(exact.num_tokens * torch.tensor(4.0).log().item(), rel=1e-5)


@pytest.mark.parametrize("noise", ["masked", "uniform", "hybrid:0.2"])
def test_a_perfect_denoiser_of_a_chain_attains_its_entropy(noise: str) -> None:
    chain = MarkovChain.random(5, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    process = build_process(noise, 5, 5, SCHEDULES.parse(MILD))
    losses = []
    for _ in range(16):
        x0 = chain.sample(64, 16, generator)
        loss = diffusion_loss(chain.denoiser(process), x0, process, generator)
        losses.append(float(loss.total) / 64)
    found = torch.tensor(losses)
    assert abs(float(found.mean()) - chain.entropy(16)) < 3 * float(found.std()) / 4


def test_untrained_positions_stay_clean_and_are_not_scored() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(4, (32, 10), generator=generator)
    trained = torch.rand(32, 10, generator=generator) < 0.6
    trained[0] = False
    for noise, times in (("masked", ExactCount()), ("masked", LowDiscrepancy()), ("uniform", Independent())):
        process = build_process(noise, 4, 4, Linear())
        seen: list[Tensor] = []

        def denoise(
            tokens: Tensor, time: Tensor, belief: Tensor | None = None, seen: list[Tensor] = seen
        ) -> Tensor:
            seen.append(tokens)
            return torch.zeros(32, 10, 4, requires_grad=True)

        loss = diffusion_loss(denoise, x0, process, generator, times=times, trained=trained)
        assert loss.num_tokens == int(trained.sum())
        assert torch.equal(seen[0][~trained], x0[~trained])
        assert not torch.equal(seen[0][trained], x0[trained])
        noised = times.noise(x0, process, generator, trained=trained)
        logits = torch.zeros(32, 10, 4, requires_grad=True)
        token_losses(logits, x0, noised, process).sum().backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        assert not logits.grad[~trained].any()
        assert logits.grad.isfinite().all()


def test_exact_counts_mask_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    process = Masked(4, 4, SCHEDULES.parse("cosine"))
    x0 = torch.zeros(60, 12, dtype=torch.int64)
    trained = torch.ones(60, 12, dtype=torch.bool)
    noised = ExactCount().noise(x0, process, generator, trained=trained)
    counts = (noised.tokens == 4).sum(-1)
    assert counts.sort().values.tolist() == [k for k in range(1, 13) for _ in range(5)]
    assert noised.weight is not None
    assert torch.allclose(noised.weight[:, 0] * counts, torch.full((60,), 12.0).double())
    assert torch.allclose(process.schedule.alpha(noised.time[:, 0]), 1 - counts.double() / 12)


def test_exact_counts_are_of_masks() -> None:
    with pytest.raises(UsageError, match="Uniform is not masked noise"):
        diffusion_loss(
            lambda tokens, time, belief=None: torch.zeros(1, 2, 3),
            torch.zeros(1, 2, dtype=torch.int64),
            Uniform(3, None, Linear()),
            torch.Generator(),
            times=ExactCount(),
        )


def test_low_discrepancy_times_fill_every_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.zeros(50, 1, dtype=torch.int64)
    noised = LowDiscrepancy().noise(
        x0, Masked(4, 4, Linear()), generator, trained=torch.ones(50, 1, dtype=torch.bool)
    )
    times = noised.time[:, 0]
    assert (times.sort().values * 50).floor().tolist() == list(range(50))
    assert not torch.equal(times, times.sort().values)
    assert times.dtype == torch.float64


@pytest.mark.parametrize("noise", ["masked", "uniform", "hybrid:0.2"])
def test_cross_entropy_is_least_at_the_posterior(noise: str) -> None:
    """A denoiser of either kind, told apart by `prediction`, gets the same; another law gets more."""
    chain = MarkovChain.random(4, torch.Generator().manual_seed(0))
    process = build_process(noise, 4, 4, Linear())
    x0 = chain.sample(400, 8, torch.Generator().manual_seed(1))

    def loss(denoise: DenoiserFunction, kind: Prediction) -> float:
        generator = torch.Generator().manual_seed(2)
        return float(
            diffusion_loss(denoise, x0, process, generator, weighting="cross_entropy", prediction=kind).total
        )

    posterior = loss(chain.denoiser(process, "posterior"), "posterior")
    assert loss(chain.denoiser(process, "leave_one_out"), "leave_one_out") == pytest.approx(
        posterior, rel=1e-9
    )
    if noise != "masked":
        assert loss(chain.denoiser(process, "leave_one_out"), "posterior") > 1.1 * posterior


def test_selected_tokens_have_the_loss_they_had() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(4, (6, 8), generator=generator)
    trained = torch.rand(6, 8, generator=generator) < 0.8
    logits = torch.randn(6, 8, 4, generator=generator)
    for noise, times in (
        ("masked", ExactCount()),
        ("masked", LowDiscrepancy()),
        ("hybrid", LowDiscrepancy()),
    ):
        process = build_process(noise, 4, 4, Linear())
        noised = times.noise(x0, process, generator, trained=trained)
        whole = token_losses(logits, x0, noised, process)
        index = process.is_masked(noised.tokens)
        assert torch.equal(token_losses(logits[index], x0[index], noised.at(index), process), whole[index])
        if noise == "masked":
            assert not whole[~index].any()


def test_the_mask_is_never_predicted() -> None:
    process = Masked(4, 3, Linear())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(3, (5, 6), generator=generator)
    noised = ExactCount().noise(x0, process, generator, trained=torch.ones_like(x0, dtype=torch.bool))
    logits = torch.zeros(5, 6, 4)
    logits[..., 3] = 50.0
    found = token_losses(logits, x0, noised, process, weighting="cross_entropy")
    assert torch.allclose(found[noised.tokens == 3], torch.tensor(3.0).log())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_belief_is_the_first_prediction_without_gradient(share: float) -> None:
    process = Masked(4, 4, Linear())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(4, (400, 3), generator=generator)
    weight = torch.ones(4, requires_grad=True)
    beliefs: list[Tensor | None] = []

    def denoise(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        beliefs.append(belief)
        logits = weight * torch.arange(4.0).expand(*tokens.shape, 4)
        return logits if belief is None else logits + belief

    diffusion_loss(denoise, x0, process, generator, belief_share=share).total.backward()  # type: ignore[no-untyped-call]
    if not share:
        assert beliefs == [None]
        return
    first, second = beliefs
    assert first is None
    assert second is not None
    assert not second.requires_grad
    believed = second.sum(-1) > 0.5
    assert torch.equal(believed.all(-1), believed.any(-1))
    assert float(believed[:, 0].float().mean()) == pytest.approx(share, abs=0.1)
    assert torch.allclose(second[believed], torch.arange(4.0).softmax(-1))


@pytest.mark.parametrize("noise", ["masked", "uniform"])
def test_half_precision_logits_are_scored_in_float32(noise: str) -> None:
    process = build_process(noise, 4, 4, Linear())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(4, (5, 6), generator=generator)
    noised = LowDiscrepancy().noise(x0, process, generator, trained=torch.ones_like(x0, dtype=torch.bool))
    logits = torch.randn(5, 6, 4, generator=generator).bfloat16()
    found = token_losses(logits, x0, noised, process)
    assert torch.equal(found, token_losses(logits.float(), x0, noised, process))
    assert found.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("noise", ["masked", "uniform", "hybrid:0.2"])
def test_a_gpu_gives_the_same_with_the_same_generator(noise: str) -> None:
    process = build_process(noise, 50, 50, Linear())
    x0 = torch.randint(50, (8, 32), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(51, 50, generator=torch.Generator().manual_seed(1))
    for times in (LowDiscrepancy(), ExactCount()) if noise == "masked" else (LowDiscrepancy(),):
        totals, laws = [], []
        for device in ("cpu", "cuda"):
            generator = torch.Generator().manual_seed(2)
            table = logits.to(device)

            def denoise(
                tokens: Tensor, time: Tensor, belief: Tensor | None = None, table: Tensor = table
            ) -> Tensor:
                return table[tokens]

            rows = x0.to(device)
            loss = diffusion_loss(denoise, rows, process, generator, times=times, belief_share=0.5)
            totals.append(float(loss.total))
            noisy = process.prior((8, 32), generator).to(device)
            law = table[noisy].log_softmax(-1)
            t = torch.full((8, 1), 0.7, device=device)
            laws.append(process.posterior(law, noisy, t / 2, t).cpu())
        assert totals[1] == pytest.approx(totals[0], rel=1e-5)
        assert torch.allclose(laws[0], laws[1], atol=1e-6)
