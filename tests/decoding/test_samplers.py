"""The laws of the samplers, enumerated: what is exact is exact, what converges converges."""

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from enumerated import Table, divergence, every_sequence, prior_law
from enumerated_sampler import chain, denoiser_of, joint, look_of, marginal
from scipy.stats import binom, chisquare
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape
from unmask.decoding.rules import EntropyBound, Klass, Threshold
from unmask.decoding.sampler import Kernel, Move, Sampler
from unmask.decoding.samplers import (
    SAMPLERS,
    Ancestral,
    CappedRemasking,
    ConfidenceRemasking,
    LoopedRemasking,
    PredictorCorrector,
    Remasking,
    Renoise,
    RescaledRemasking,
    Unmask,
    parse_sampler,
)
from unmask.decoding.sampling import sample
from unmask.diffusion import SCHEDULES, Hybrid, Masked, Prediction, Process, Schedule, Uniform
from unmask.errors import UsageError
from unmask.rng import Stream

LINEAR, COSINE, SQUARE = (SCHEDULES.parse(text) for text in ("linear", "cosine", "polynomial:2"))
CAP, RESCALE, LOOP = CappedRemasking(0.3), RescaledRemasking(0.5), LoopedRemasking(0.2, 0.7, 0.4, 0.2)
MARGINAL_KEEPERS: list[Kernel] = [
    Ancestral(),
    PredictorCorrector(),
    PredictorCorrector(3),
    CAP,
    RESCALE,
    LOOP,
]


def processes(size: int, schedule: Schedule = LINEAR) -> list[Process]:
    return [
        Masked(size, size, schedule),
        Uniform(size, None, schedule),
        Hybrid(size, size, schedule, uniform_share=0.3),
    ]


CONVERGING = [*processes(2)[:2], Hybrid(2, 2, SQUARE, uniform_share=0.3)]
"""Hybrid noise with a linear schedule jumps infinitely fast at time 0, and even steps converge slowly there."""


def fitting(processes: list[Process]) -> list[tuple[Kernel, Process]]:
    pairs = itertools.product(MARGINAL_KEEPERS, processes)
    return [
        (sampler, process)
        for sampler, process in pairs
        if isinstance(process, Masked) or not isinstance(sampler, Remasking)
    ]


@pytest.mark.parametrize(("sampler", "process"), fitting(processes(3) + processes(3, COSINE)), ids=repr)
def test_one_token_has_the_right_law_at_every_step(sampler: Kernel, process: Process) -> None:
    """With one token nothing is independent that should not be, so any number of steps is exact."""
    table = Table.random(3, 1, seed=1)
    for steps in (1, 2, 7):
        moves = sampler.moves(steps, process.schedule)
        laws = chain(sampler, process, table.exact(process), 1, moves)
        assert len(moves) == steps
        assert moves[-1].s == 0
        for move, law in zip(moves, laws, strict=True):
            torch.testing.assert_close(law, marginal(table, process, move.s), atol=1e-14, rtol=0)


@pytest.mark.parametrize("sampler", [Ancestral(), CAP, RESCALE, LOOP], ids=repr)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=repr)
def test_remasking_keeps_the_marginals_given_the_text(sampler: Kernel, schedule: Schedule) -> None:
    """Told the true text, the kernel from t to s takes q(x_t | x_0) to q(x_s | x_0), at any length."""
    size, length = 2, 3
    process, states = Masked(size, size, schedule), every_sequence(size + 1, length)
    text = Table(size, length, torch.eye(size**length, dtype=torch.float64)[5])
    moves = {*sampler.moves(8, schedule), Move(0.9, 0.3), Move(0.31, 0.3)}
    for move in moves:
        logits = text.exact(process)(states, torch.tensor(move.t, dtype=torch.float64))
        kernel = joint(sampler.law(look_of(process, states, logits, move)), states)
        found = marginal(text, process, move.t) @ kernel
        torch.testing.assert_close(found, marginal(text, process, move.s), atol=1e-14, rtol=0)


def test_the_loop_revises_only_while_it_stays() -> None:
    process, states = Masked(2, 2, LINEAR), every_sequence(3, 2)
    logits = Table.random(2, 2).exact(process)(states, torch.tensor(0.5, dtype=torch.float64))
    on_the_way, staying = Move(0.4, 0.3), Move(0.3, 0.3)
    same = [sampler.law(look_of(process, states, logits, on_the_way)) for sampler in (LOOP, Ancestral())]
    torch.testing.assert_close(*same)
    law = LOOP.law(look_of(process, states, logits, staying))
    torch.testing.assert_close(law[..., 2][states < 2], torch.full((12,), 0.2, dtype=torch.float64))


def test_remasking_by_confidence_keeps_them_only_about() -> None:
    process, states = Masked(2, 2, LINEAR), every_sequence(3, 3)
    text = Table(2, 3, torch.eye(8, dtype=torch.float64)[5])
    move = Move(0.5, 0.45)
    logits = text.exact(process)(states, torch.tensor(0.5, dtype=torch.float64))
    law = ConfidenceRemasking().law(look_of(process, states, logits, move))
    found = marginal(text, process, 0.5) @ joint(law, states)
    masks = (states == 2).double().mean(-1)
    expected = float(found @ masks)
    assert (
        0.5 < expected < 0.45 + 1.1 / 3 * 0.875
    )  # one of three tokens, if there is one, of sigma at most one


def test_remasking_by_confidence_prefers_the_doubtful() -> None:
    process = Masked(2, 2, LINEAR)
    look = look_of(process, torch.tensor([[0, 1, 2, 1]]), torch.zeros(1, 4, 2), Move(0.5, 0.4))
    look = replace(look, confidence=torch.tensor([[0.9, 0.1, 0.5, 0.5]]))
    sigma = ConfidenceRemasking().law(look)[0, :, 2]
    weights = torch.tensor([-0.9, -0.1, -0.5], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(sigma[[0, 1, 3]], weights * (0.4 / 0.5))
    torch.testing.assert_close(sigma[2], torch.tensor(0.8, dtype=torch.float64))


@pytest.mark.parametrize(("sampler", "process"), fitting(CONVERGING), ids=repr)
def test_more_steps_come_closer_to_the_data(sampler: Kernel, process: Process) -> None:
    table = Table.random(2, 3)

    def distance(steps: int) -> float:
        moves = sampler.moves(steps, process.schedule)
        law = chain(sampler, process, table.exact(process), 3, moves)[-1]
        return divergence(table, law, process.num_states)

    few, some, many = (distance(steps) for steps in (8, 32, 128))
    assert few > some > many
    if not isinstance(sampler, LoopedRemasking):  # while it stays at a level, its steps do not shrink
        assert many < 0.006


@pytest.mark.parametrize("process", CONVERGING, ids=repr)
def test_a_corrector_improves_the_law_of_its_own_grid(process: Process) -> None:
    table = Table.random(2, 3)
    exact = table.exact(process)

    def distance(sampler: Kernel, steps: int) -> float:
        law = chain(sampler, process, exact, 3, sampler.moves(steps, process.schedule))[-1]
        return divergence(table, law, process.num_states)

    assert distance(PredictorCorrector(1), 2 * 32) < distance(Ancestral(), 32)


def test_the_posterior_mean_in_the_place_of_leave_one_out_never_converges() -> None:
    """The negative control: the kind of a prediction matters, and saying it makes either kind right."""
    process, table, rows = Uniform(2, None, LINEAR), Table.random(2, 2), 400

    def law_of(sampler: Ancestral, kind: Prediction, claimed: Prediction) -> float:
        states = every_sequence(2, 2)
        law = prior_law(process, 2)
        for move in sampler.moves(64, LINEAR):
            logits = table.exact(process, kind)(states, torch.tensor(move.t, dtype=torch.float64))
            look = replace(look_of(process, states, logits, move), kind=claimed)
            law = law @ joint(sampler.law(look), states)
        return divergence(table, law, 2)

    right = law_of(Ancestral(), "leave_one_out", "leave_one_out")
    assert right < 1e-3
    assert law_of(Ancestral(), "posterior", "posterior") == pytest.approx(right, abs=1e-12)
    assert law_of(Ancestral(), "posterior", "leave_one_out") > 50 * right
    free = torch.ones(rows, 2, dtype=torch.bool)
    blank = torch.zeros(rows, 2, dtype=torch.int64)
    kinds: tuple[Prediction, ...] = ("leave_one_out", "posterior")
    same = [
        sample(
            denoiser_of(table, process, kind),
            process,
            blank,
            free,
            Ancestral(),
            steps=9,
            seeds=range(rows),
            prediction=kind,
        ).tokens
        for kind in kinds
    ]
    assert torch.equal(*same)


@pytest.mark.parametrize(("sampler", "process"), fitting(CONVERGING), ids=repr)
def test_the_loop_draws_from_the_enumerated_law(sampler: Kernel, process: Process) -> None:
    rows, steps, table = 2000, 4, Table.random(2, 3)
    moves = sampler.moves(steps, process.schedule)
    law = chain(sampler, process, table.exact(process), 3, moves)[-1]
    blank = torch.zeros(rows, 3, dtype=torch.int64)
    found = sample(
        denoiser_of(table, process), process, blank, blank == 0, sampler, steps=steps, seeds=range(rows)
    )
    base = process.num_states
    places = (found.tokens * base ** torch.arange(2, -1, -1)).sum(-1)
    counts = torch.bincount(places, minlength=base**3)
    possible = law > 1e-12
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible].numpy(), (law[possible] * rows).numpy()).pvalue > 1e-4


def test_the_number_of_reveals_is_binomial() -> None:
    """What a float32 Gumbel draw gets wrong first: here it is exact at the first of 1024 steps, and at any other."""
    rows, length = 2000, 64
    process = Masked(5, 5, COSINE)
    tokens = torch.full((rows, length), 5)
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0)).expand(rows, length, 5)
    for move in (Move(1.0, 1023 / 1024), Move(0.5, 0.49), Move(0.3, 0.1)):
        step = Ancestral().step(look_of(process, tokens, logits, move, seed=7))
        counts = (step.tokens != 5).sum(-1)
        alpha_t, alpha_s = (float(COSINE.alpha(torch.tensor(time, dtype=torch.float64))) for time in move)
        chance = binom(length, (alpha_s - alpha_t) / (1 - alpha_t))
        edges = [k for k in range(length + 1) if chance.pmf(k) * rows > 8]
        low, high = edges[0], edges[-1]
        observed = torch.bincount(counts.clamp(low, high), minlength=high + 1)[low:]
        expected = [chance.pmf(k) for k in range(low, high + 1)]
        expected[0] += chance.cdf(low - 1)
        expected[-1] += chance.sf(high)
        assert len(expected) == 1 or chisquare(observed.numpy(), [rows * p for p in expected]).pvalue > 1e-4


class GivenNoise(Keys):
    """Keys that answer with prescribed uniforms."""

    values: dict[Stream, Tensor]

    def noise(self, stream: Stream) -> Tensor:
        return self.values[stream]


def realised(process: Process, law: Tensor, move: Move, token: Tensor) -> Tensor:
    """Return the tokens one masked position becomes when it is revealed and the token's uniforms are given: (M,)."""
    look = look_of(process, torch.full((len(token), 1), len(law)), law.log().expand(len(token), 1, -1), move)
    keys = GivenNoise(look.keys.seeds, look.keys.positions, look.keys.steps)
    object.__setattr__(
        keys, "values", {Stream.ORDER: torch.zeros_like(token)[:, None], Stream.TOKEN: token[:, None]}
    )
    return Ancestral().step(replace(look, keys=keys)).tokens[:, 0]


def test_rare_tokens_keep_their_probability_at_every_number_of_steps() -> None:
    """A token of probability 1e-9 has a share of 1e-9 of the uniforms, and a rarer neighbour its third of that."""
    rare = torch.tensor([1e-9, 1 / 3 * 1e-9], dtype=torch.float64)
    law = torch.cat([1 - rare.sum(0, keepdim=True), rare])
    process = Masked(3, 3, LINEAR)
    for steps in (4, 1024, 10**6):
        move = Move(1.0, 1 - 1 / steps)
        for token, (below, above) in ((1, (law[0], law[:2].sum())), (2, (law[:2].sum(), torch.ones(())))):
            inside = torch.tensor([below * (1 + 1e-15), (below + above) / 2, above * (1 - 1e-15)]).double()
            width = float(above - below)
            assert width == pytest.approx(float(law[token]), rel=1e-6)
            assert realised(process, law, move, inside).tolist() == [token] * 3
            outside = torch.tensor([below - width * 1e-6], dtype=torch.float64)
            assert realised(process, law, move, outside).tolist() == [token - 1]
    # Uniforms of float32 step by 6e-8 below one: neither of the two could ever be drawn from them.
    coarse = torch.tensor([1 - 2**-24, 1 - 2**-23], dtype=torch.float64)
    assert realised(process, law, Move(1.0, 0.5), coarse).tolist() == [0, 0]


def test_unmasking_needs_masks_and_renoising_uniform_noise() -> None:
    masked, uniform, hybrid = processes(3)
    wrong: list[tuple[Sampler, Process]] = [
        (Unmask(Threshold()), uniform),
        (Unmask(Klass()), hybrid),
        (CAP, uniform),
        (LOOP, hybrid),
        (Renoise(), masked),
        (Renoise(), hybrid),
    ]
    for sampler, process in wrong:
        name = re.escape(f"{sampler} does not fit the process {type(process).__name__}")
        with pytest.raises(UsageError, match=name):
            sampler.check(process)


@pytest.mark.parametrize(
    ("text", "sampler"),
    [
        ("ancestral", Ancestral()),
        ("predictor-corrector:2", PredictorCorrector(2)),
        ("remdm-cap:0.1", CappedRemasking(0.1)),
        ("remdm-rescale", RescaledRemasking(0.02)),
        ("remdm-conf", ConfidenceRemasking()),
        ("remdm-loop:0.05,0.8", LoopedRemasking(0.05, 0.8)),
        ("renoise:0.2,0.9,0.5,3", Renoise(0.2, 0.9, 0.5, 3)),
        ("threshold:0.8", Unmask(Threshold(0.8))),
        ("entropy-bound", Unmask(EntropyBound())),
    ],
)
def test_parse(text: str, sampler: Sampler) -> None:
    assert parse_sampler(text) == sampler


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ancestrul", "unknown sampler or rule 'ancestrul' (did you mean 'ancestral'?)"),
        ("tresholt:0.9", "did you mean 'threshold'?"),
        ("ancestral:3", "takes at most 0 number(s), 1 were given"),
        ("predictor-corrector:0", "rounds=0 must be at least 1"),
        ("remdm-cap:1.5", "eta=1.5 must be between 0 and 1"),
        ("remdm-loop:0.1,1.0", "alpha must be below 1"),
        ("remdm-loop:0.1,0.9,0.8,0.3", "first and last at most 1 together"),
        ("renoise:-1", "gamma=-1.0 must be 0 or more and finite"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_sampler(text)


def test_every_registered_sampler_has_defaults() -> None:
    assert {"ancestral", "predictor-corrector", "remdm-cap", "renoise"} <= set(SAMPLERS.names())
    for name in SAMPLERS.names():
        assert isinstance(parse_sampler(name), Sampler)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 37])
@pytest.mark.parametrize("sampler", [*MARGINAL_KEEPERS, Renoise(), LoopedRemasking()], ids=repr)
def test_moves_lead_from_noise_to_text_in_exactly_the_steps(sampler: Sampler, steps: int) -> None:
    moves = sampler.moves(steps, COSINE)
    assert len(moves) == steps
    assert (moves[0].t, moves[-1].s) == (1, 0)
    assert all(0 <= move.s <= move.t <= 1 for move in moves)
    for before, after in itertools.pairwise(moves):
        assert after.t >= before.s  # up by fresh noise, never down without a forward


def test_greedy_shapes_are_greedy() -> None:
    process = Masked(3, 3, LINEAR)
    logits = torch.tensor([0.1, 0.5, 0.4]).log().expand(50, 4, 3)
    look = replace(
        look_of(process, torch.full((50, 4), 3), logits, Move(0.5, 0.0)), shape=Shape(temperature=0)
    )
    assert set(Ancestral().step(look).tokens.flatten().tolist()) == {1}
    cut = replace(look, shape=Shape(top_k=2))
    assert set(Ancestral().step(cut).tokens.flatten().tolist()) == {1, 2}
    assert math.isclose(float(Ancestral().law(cut)[0, 0, 1]), 5 / 9, rel_tol=1e-6)
    with pytest.raises(UsageError, match="top_p above 0"):
        Shape(top_p=0)
