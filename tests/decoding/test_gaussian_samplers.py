"""Samplers of Gaussian noise on laws whose perfect denoiser is known."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from enumerated import Table
from gaussian_toys import DIEGO, LINE, NEW, SAN, SQUARE, YORK, Exact, on_a_line, templates
from scipy.stats import chisquare, kstest
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape
from unmask.decoding.gaussian_samplers import (
    GAUSSIAN_SAMPLERS,
    Churn,
    Euler,
    GaussianAncestral,
    GaussianMove,
    GaussianSampler,
    Heun,
    Multistep,
    Restart,
    Seen,
)
from unmask.decoding.gaussian_sampling import Sharpened, gaussian_sample, gaussian_sampling
from unmask.diffusion.flow_end import flow_end
from unmask.diffusion.gaussian import Gaussian
from unmask.diffusion.gaussian_objective import GaussianNoised
from unmask.diffusion.gaussian_schedule import GumbelGamma, LinearGamma
from unmask.errors import UsageError
from unmask.rng import Stream

SCHEDULE = LinearGamma(-5.0, 9.0)
SAMPLERS: list[GaussianSampler] = [Euler(), Heun(), Multistep(), Churn(0.5), GaussianAncestral()]
ROWS = 1500


class Watching:
    """The exact denoiser, and what it was called with."""

    def __init__(self, table: Table, process: Gaussian) -> None:
        self.exact, self.calls = Exact(table, process), list[tuple[Tensor, Tensor, Tensor | None]]()

    def __call__(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        self.calls.append((noisy, gamma, belief))
        return self.exact(noisy, gamma, belief)


def written(
    table: Table,
    process: Gaussian,
    sampler: GaussianSampler,
    steps: int,
    *,
    rows: int = ROWS,
    given: dict[int, int] | None = None,
) -> Sharpened:
    tokens = torch.zeros(rows, table.length, dtype=torch.int64)
    free = torch.ones_like(tokens, dtype=torch.bool)
    for place, token in (given or {}).items():
        tokens[:, place], free[:, place] = token, False
    return gaussian_sample(
        Exact(table, process), process, tokens, free, sampler, steps=steps, seeds=range(rows)
    )


def counts(table: Table, tokens: Tensor) -> Tensor:
    places = table.vocab_size ** torch.arange(table.length - 1, -1, -1)
    return torch.bincount((tokens * places).sum(-1), minlength=len(table.chances))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_the_law_of_two_correlated_tokens_is_recovered(sampler: GaussianSampler) -> None:
    table = Table.random(3, 2)
    found = counts(table, written(table, on_a_line(table, SCHEDULE), sampler, 60).tokens)
    assert chisquare(found, ROWS * table.chances).pvalue > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_templates_come_out_whole_and_alike_often(sampler: GaussianSampler) -> None:
    table = templates()
    found = counts(table, written(table, Gaussian(SQUARE, SCHEDULE), sampler, 30).tokens)
    whole = found[table.chances > 0]
    assert int(whole.sum()) == ROWS
    assert chisquare(whole).pvalue > 1e-3


def test_one_forward_writes_independent_tokens() -> None:
    table = templates()
    found = counts(table, written(table, Gaussian(SQUARE, SCHEDULE), Euler(), 1).tokens)
    independent = (table.marginals[0][:, None] * table.marginals[1]).flatten()
    assert chisquare(found[independent > 0], ROWS * independent[independent > 0]).pvalue > 1e-3


@pytest.mark.parametrize("steps", [1, 3])
def test_restarts_write_whole_templates_where_the_flow_ends(steps: int) -> None:
    """A denoiser that names the flow's end needs one forward; fresh noise in further ones keeps the law."""
    table, rows = templates(), 600
    process = Gaussian(SQUARE, LinearGamma(-6.0, 6.0))

    def student(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        t, free = (gamma[:, 0] + 6) / 12, torch.ones_like(gamma, dtype=torch.bool)
        noised = GaussianNoised(noisy, gamma, t, free)
        return flow_end(Exact(table, process), blank, noised, process, num_steps=16)

    blank = torch.zeros(rows, 2, dtype=torch.int64)
    free = torch.ones_like(blank, dtype=torch.bool)
    shape = Shape(temperature=0.0)
    found = gaussian_sample(
        student, process, blank, free, Restart(), steps=steps, seeds=range(rows), shape=shape
    )
    whole = counts(table, found.tokens)[table.chances > 0]
    assert int(whole.sum()) == rows
    assert chisquare(whole).pvalue > 1e-3


def walk(
    table: Table, process: Gaussian, sampler: GaussianSampler, num_moves: int, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the embeddings after every move, and their gamma."""
    generator, exact = torch.Generator().manual_seed(0), Exact(table, process)
    z = torch.randn(rows, table.length, process.size, dtype=torch.float64, generator=generator)
    last: list[Seen | None] = [None]

    def predict(z: Tensor, gamma: Tensor) -> Tensor:
        seen = Seen(process.mean(exact(z, gamma.expand(rows, table.length)).softmax(-1)), gamma)
        last[0] = seen
        return seen.mean

    def noise() -> Tensor:
        return torch.randn(z.shape, dtype=torch.float64, generator=generator)

    for gamma, target in pairwise(process.schedule.levels(num_moves)):
        z = sampler.move(GaussianMove(process, z, gamma, target, predict, noise, last[0]), forwards=2)
        yield z, target


@pytest.mark.parametrize("sampler", [*SAMPLERS, Churn(1.0)], ids=repr)
def test_every_noise_level_keeps_its_moments(sampler: GaussianSampler) -> None:
    table, rows = Table(2, 2, torch.tensor([0.4, 0.1, 0.2, 0.3]).double()), 4000
    process, values = on_a_line(table, LinearGamma(-4, 8)), LINE[table.sequences, 0]
    clean = torch.stack([*values.T, values.prod(-1), values[:, 0].square()], -1)
    truth = table.chances @ clean
    for number, (z, gamma) in enumerate(walk(table, process, sampler, 48, rows), start=1):
        if number % 12 == 0:
            alpha, variance = (-gamma).sigmoid().sqrt(), gamma.sigmoid()
            x, y = z[..., 0].T
            found = torch.stack([x, y, x * y, x.square() - variance], -1)
            factor = torch.stack([alpha, alpha, alpha**2, alpha**2])
            error = 4 * found.std(0) / rows**0.5 + 0.01
            assert ((found.mean(0) - factor * truth).abs() < error).all(), number


def test_second_order_needs_fewer_forwards() -> None:
    table = Table.random(4, 3)
    process = Gaussian(SQUARE, LinearGamma(-4.0, 8.0))

    def end(sampler: GaussianSampler, num_moves: int) -> Tensor:
        *_, (z, _) = walk(table, process, sampler, num_moves, 300)
        return z

    fine = end(Multistep(), 200)
    euler, heun, multistep = (
        float((end(sampler, num_moves) - fine).abs().mean())
        for sampler, num_moves in ((Euler(), 32), (Heun(), 16), (Multistep(), 32))
    )
    assert heun < euler / 2
    assert multistep < heun


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_forwards_are_the_steps_and_beliefs_are_handed_on(sampler: GaussianSampler, steps: int) -> None:
    table = templates()
    process = Gaussian(SQUARE, GumbelGamma(0.0, 0.85))
    watching = Watching(table, process)
    tokens, free = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2, dtype=torch.bool)
    *_, before, last = gaussian_sampling(
        watching, process, tokens, free, sampler, steps=steps, seeds=range(3)
    )
    assert len(watching.calls) == steps
    assert last.num_forwards.tolist() == [steps] * 3
    assert before.noisy.all()
    assert not last.noisy.any()
    assert watching.calls[0][2] is None
    for (noisy, gamma, _), (_, _, belief) in pairwise(watching.calls):
        assert belief is not None
        torch.testing.assert_close(belief, watching.exact(noisy, gamma).softmax(-1))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize(("given", "others"), [({0: NEW}, {1: YORK}), ({1: DIEGO}, {0: SAN})])
def test_given_tokens_before_and_after_are_kept_and_known(
    sampler: GaussianSampler, given: dict[int, int], others: dict[int, int]
) -> None:
    table = templates()
    result = written(table, Gaussian(SQUARE, SCHEDULE), sampler, 8, rows=50, given=given)
    for place, token in {**given, **others}.items():
        assert (result.tokens[:, place] == token).all()
    assert (result.confidence[:, next(iter(given))] == 1).all()
    assert (result.decided_at[:, next(iter(given))] == 0).all()


def test_the_network_sees_given_tokens_without_noise() -> None:
    table = templates()
    process = Gaussian(SQUARE, SCHEDULE)
    watching = Watching(table, process)
    tokens, free = torch.tensor([[NEW, 0]]), torch.tensor([[False, True]])
    gaussian_sample(watching, process, tokens, free, GaussianAncestral(), steps=4, seeds=[0])
    for noisy, gamma, _ in watching.calls:
        torch.testing.assert_close(
            noisy[0, 0], process.noise(tokens, torch.tensor(-5.0).double(), SQUARE[:1] * 0)[0, 0]
        )
        assert gamma[0, 0] == -5
        assert gamma[0, 1] > -5


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_rows_depend_on_their_seeds_alone(sampler: GaussianSampler) -> None:
    table = Table.random(3, 2)
    process = on_a_line(table, SCHEDULE)

    def texts(seeds: list[int]) -> list[list[int]]:
        tokens = torch.zeros(len(seeds), 2, dtype=torch.int64)
        return gaussian_sample(
            Exact(table, process),
            process,
            tokens,
            torch.ones_like(tokens, dtype=torch.bool),
            sampler,
            steps=6,
            seeds=seeds,
        ).tokens.tolist()

    together = texts(list(range(20)))
    assert len({tuple(text) for text in together}) > 3
    assert texts([17]) == together[17:18]
    assert texts([3, 3, 9]) == [together[3], together[3], together[9]]


def test_noise_is_normal_and_differs_in_every_dimension_position_and_step() -> None:
    process = Gaussian(SQUARE, SCHEDULE)
    seen: list[Tensor] = []

    class Listening(GaussianSampler):
        def move(self, move: GaussianMove, *, forwards: int) -> Tensor:
            move.predict(move.z, move.gamma)
            seen.extend([move.z, move.noise()])
            return move.z

    tokens = torch.zeros(300, 4, dtype=torch.int64)
    free = torch.ones_like(tokens, dtype=torch.bool)
    gaussian_sample(
        Exact(Table.random(4, 4), process), process, tokens, free, Listening(), steps=2, seeds=range(300)
    )
    draws = torch.stack([seen[0], seen[1], seen[3]]).flatten()
    assert len(draws.unique()) == len(draws)
    assert kstest(draws, "norm").pvalue > 1e-3
    whole = torch.stack([seen[0], seen[1], seen[3]], 1).flatten(1)
    assert float((whole.T.corrcoef() - torch.eye(24)).abs().max()) < 5 / 300**0.5
    first = Keys((0,), torch.tensor([[0]]), (1,)).noise(Stream.TOKEN)
    assert 0 <= float(first) < 1


def test_no_churn_is_euler() -> None:
    table = templates()
    process = Gaussian(SQUARE, SCHEDULE)
    plain, churned = (written(table, process, sampler, 5, rows=30) for sampler in (Euler(), Churn(0.0)))
    torch.testing.assert_close(churned.tokens, plain.tokens)


def test_churn_steps_back_but_for_the_last_forward() -> None:
    process = Gaussian(SQUARE, LinearGamma(-4, 8))
    watching = Watching(templates(), process)
    tokens, free = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool)
    gaussian_sample(watching, process, tokens, free, Churn(0.5), steps=4, seeds=[0])
    gammas = [float(gamma[0, 0]) for _, gamma, _ in watching.calls]
    assert gammas == pytest.approx([8, 6.5, 3.5, -1])  # the first is at the end already


def test_temperature_zero_writes_the_most_probable() -> None:
    table = Table(2, 1, torch.tensor([0.3, 0.7]).double())
    process = on_a_line(table, SCHEDULE)
    tokens, free = torch.zeros(40, 1, dtype=torch.int64), torch.ones(40, 1, dtype=torch.bool)
    result = gaussian_sample(
        Exact(table, process), process, tokens, free, Euler(), steps=1, seeds=range(40), shape=Shape(0.0)
    )
    assert (result.tokens == 1).all()
    assert (result.confidence == 1).all()


def test_a_text_sharpens() -> None:
    table = templates()
    process = Gaussian(SQUARE, SCHEDULE)
    tokens, free = torch.zeros(200, 2, dtype=torch.int64), torch.ones(200, 2, dtype=torch.bool)
    states = list(
        gaussian_sampling(Exact(table, process), process, tokens, free, Euler(), steps=16, seeds=range(200))
    )
    assert len(states) == 17
    confidence = [float(state.confidence.mean()) for state in states]
    assert confidence[0] == 0
    assert confidence[1] == pytest.approx(0.5, abs=0.05)
    assert confidence[-1] > 0.999
    assert (states[-1].decided_at <= 16).all()


@pytest.mark.parametrize("place", [[True, True], [False, False]])
def test_nothing_to_fill_costs_nothing(place: list[bool]) -> None:
    table = templates()
    process = Gaussian(SQUARE, SCHEDULE)
    tokens, free = torch.tensor([[NEW, YORK]]), torch.tensor([place])
    result = gaussian_sample(Exact(table, process), process, tokens, free, Euler(), steps=3, seeds=[0])
    assert result.num_forwards.tolist() == [3 if any(place) else 0]
    if not any(place):
        assert result.tokens.tolist() == [[NEW, YORK]]


@pytest.mark.parametrize(
    ("tokens", "free", "steps", "seeds", "message"),
    [
        ([[0, 0]], [[True, True]], 0, [0], "steps=0"),
        ([[0, 0]], [[True]], 1, [0], "do not fit"),
        ([[0, 0]], [[True, True]], 1, [0, 1], "2 seeds"),
        ([[4, 0]], [[False, True]], 1, [0], "vocabulary of 4"),
        ([[-1, 0]], [[False, True]], 1, [0], "vocabulary of 4"),
    ],
)
def test_what_does_not_fit_is_refused(
    tokens: list[list[int]], free: list[list[bool]], steps: int, seeds: list[int], message: str
) -> None:
    process = Gaussian(SQUARE, SCHEDULE)
    with pytest.raises(UsageError, match=message):
        gaussian_sample(
            Exact(templates(), process),
            process,
            torch.tensor(tokens),
            torch.tensor(free),
            Euler(),
            steps=steps,
            seeds=seeds,
        )


def test_texts_mean_samplers() -> None:
    assert set(GAUSSIAN_SAMPLERS.names()) == {"euler", "heun", "multistep", "churn", "ancestral", "restart"}
    assert GAUSSIAN_SAMPLERS.parse("churn:0.25") == Churn(0.25)
    with pytest.raises(UsageError, match=r"share=-1\.0"):
        GAUSSIAN_SAMPLERS.parse("churn:-1")
