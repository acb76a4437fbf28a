"""The sampling loop: what is given stays, rows stand alone, forwards are counted, beliefs are handed on."""

import re
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch
from enumerated import Table
from enumerated_sampler import denoiser_of, look_of
from torch import Tensor

from unmask.decoding.candidates import Shape
from unmask.decoding.decision import Confidence
from unmask.decoding.rules import EntropyBound, Factor, Klass, LeftToRight, Random, Spaced, Threshold, TopK
from unmask.decoding.sampler import Look, Move, Sampler, Step
from unmask.decoding.samplers import (
    Ancestral,
    CappedRemasking,
    ConfidenceRemasking,
    LoopedRemasking,
    PredictorCorrector,
    Renoise,
    RescaledRemasking,
    Unmask,
)
from unmask.decoding.sampling import Sampled, sample
from unmask.diffusion import SCHEDULES, DenoiserFunction, Hybrid, Masked, Process, Uniform
from unmask.errors import UsageError

SIZE, LENGTH = 3, 4
LINEAR = SCHEDULES.parse("linear")
MASKED, UNIFORM, HYBRID = (
    Masked(SIZE, SIZE, LINEAR),
    Uniform(SIZE, None, LINEAR),
    Hybrid(SIZE, SIZE, SCHEDULES.parse("polynomial:2"), uniform_share=0.3),
)
TABLE = Table.random(SIZE, LENGTH)

CASES: list[tuple[Sampler, Process]] = [
    *(
        (sampler, process)
        for sampler in (Ancestral(), PredictorCorrector())
        for process in (MASKED, UNIFORM, HYBRID)
    ),
    (CappedRemasking(0.3), MASKED),
    (RescaledRemasking(0.5), MASKED),
    (ConfidenceRemasking(), MASKED),
    (LoopedRemasking(0.2, 0.7), MASKED),
    *(
        (Unmask(rule), MASKED)
        for rule in (Threshold(0.6), TopK(2), EntropyBound(0.5), Factor(), Klass(0.5, 0.1, 1))
    ),
    *((Unmask(rule, "highest"), MASKED) for rule in (Random(), LeftToRight(), Spaced())),
    (Renoise(), UNIFORM),
]
every_case = pytest.mark.parametrize(("sampler", "process"), CASES, ids=repr)


@dataclass
class Recorder:
    """A denoiser that keeps what it was given."""

    denoiser: DenoiserFunction
    tokens: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    beliefs: list[Tensor | None] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def __call__(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        self.tokens.append(tokens.clone())
        self.times.append(time)
        self.beliefs.append(belief)
        self.logits.append(self.denoiser(tokens, time, belief))
        return self.logits[-1]


def run(
    sampler: Sampler,
    process: Process,
    rows: int,
    *,
    steps: int = 6,
    seeds: list[int] | None = None,
    free: Tensor | None = None,
    tokens: Tensor | None = None,
    denoiser: DenoiserFunction | None = None,
    table: Table = TABLE,
) -> Sampled:
    blank = torch.zeros(rows, table.length, dtype=torch.int64)
    return sample(
        denoiser or denoiser_of(table, process),
        process,
        blank if tokens is None else tokens,
        torch.ones_like(blank, dtype=torch.bool) if free is None else free,
        sampler,
        steps=steps,
        seeds=list(range(rows)) if seeds is None else seeds,
    )


@every_case
def test_given_tokens_never_change(sampler: Sampler, process: Process) -> None:
    generator = torch.Generator().manual_seed(5)
    rows = 12
    free = torch.rand(rows, LENGTH, generator=generator) < 0.6
    free[0], free[1] = False, True
    tokens = torch.randint(0, SIZE, (rows, LENGTH), generator=generator)
    recorder = Recorder(denoiser_of(TABLE, process))
    done = run(sampler, process, rows, tokens=tokens, free=free, denoiser=recorder)
    for seen in [*recorder.tokens, done.tokens]:
        assert seen[~free].equal(tokens[~free])
    assert ((done.tokens >= 0) & (done.tokens < SIZE)).all()
    assert done.num_forwards[0] == 0
    assert (done.decided_at[~free] == 0).all()
    assert (done.decided_at <= done.num_forwards[:, None]).all()
    if isinstance(process, Masked):
        assert (done.decided_at[free] > 0).all()


@every_case
def test_rows_do_not_depend_on_their_neighbours(sampler: Sampler, process: Process) -> None:
    seeds = [3, 1, 4, 15, 9, 2]
    together = run(sampler, process, 6, seeds=seeds)
    backwards = run(sampler, process, 6, seeds=seeds[::-1])
    assert backwards.tokens.flip(0).equal(together.tokens)
    assert backwards.num_forwards.flip(0).equal(together.num_forwards)
    for row, seed in enumerate(seeds):
        alone = run(sampler, process, 1, seeds=[seed])
        assert alone.tokens[0].equal(together.tokens[row])
        assert alone.decided_at[0].equal(together.decided_at[row])
        assert alone.num_forwards[0] == together.num_forwards[row]
    assert len({tuple(row) for row in run(sampler, process, 40).tokens.tolist()}) > 1


@every_case
def test_forwards_are_counted_and_kept_within_the_budget(sampler: Sampler, process: Process) -> None:
    for steps in (1, 2, 5):
        recorder = Recorder(denoiser_of(TABLE, process))
        done = run(sampler, process, 20, steps=steps, denoiser=recorder)
        assert int(done.num_forwards.max()) == len(recorder.tokens) <= steps
        assert not process.is_masked(done.tokens).any()
        assert all(((time >= 0) & (time <= 1)).all() for time in recorder.times)
        assert (recorder.times[0] == 1).all()


@every_case
def test_the_last_probabilities_are_the_next_belief(sampler: Sampler, process: Process) -> None:
    recorder = Recorder(denoiser_of(TABLE, process))
    run(sampler, process, 3, denoiser=recorder)
    assert recorder.beliefs[0] is None
    for belief, logits in zip(recorder.beliefs[1:], recorder.logits[:-1], strict=True):
        assert belief is not None
        torch.testing.assert_close(belief, logits.softmax(-1))


def test_a_sampler_that_unmasks_for_good_stops_when_nothing_is_masked() -> None:
    assert set(run(Unmask(Threshold(0.0)), MASKED, 8).num_forwards.tolist()) == {1}
    assert set(run(Unmask(LeftToRight()), MASKED, 8).num_forwards.tolist()) == {4}
    assert set(run(Unmask(LeftToRight()), MASKED, 8, steps=2).num_forwards.tolist()) == {2}
    early = run(Ancestral(), MASKED, 50, steps=30)
    assert early.num_forwards.min() < 30
    assert early.num_forwards.equal(early.decided_at.amax(-1))


def test_unmasking_tells_the_share_of_masks_as_the_time() -> None:
    recorder = Recorder(denoiser_of(TABLE, MASKED))
    free = torch.tensor([[True, True, True, True], [False, True, True, False]])
    run(Unmask(LeftToRight()), MASKED, 2, free=free, denoiser=recorder)
    assert [time[:, 0].tolist() for time in recorder.times] == [[1, 1], [0.75, 0.5], [0.5, 0], [0.25, 0]]


def test_selecting_by_the_drawn_token_favours_the_likely_one_and_by_the_law_does_not() -> None:
    """Two independent tokens; a draw-then-select rule waits for the confident draw, and so shifts the law."""
    chances = torch.tensor([0.1, 0.9], dtype=torch.float64)
    table = Table(2, 2, torch.outer(chances, chances).flatten())
    process, rows = Masked(2, 2, LINEAR), 3000
    rates: dict[Confidence, float] = {}
    ways: tuple[Confidence, ...] = ("drawn", "highest")
    for confidence in ways:
        done = run(
            Unmask(Threshold(0.8), confidence),
            process,
            rows,
            table=table,
            steps=2,
        )
        rates[confidence] = float(done.tokens.double().mean())
    error = (0.09 / (2 * rows)) ** 0.5
    assert abs(rates["highest"] - 0.9) < 4 * error
    assert rates["drawn"] > 0.9 + 10 * error


def peaked_table() -> Table:
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(SIZE**LENGTH, dtype=torch.float64, generator=generator)
    chances = 0.03 * chances / chances.sum()
    chances[47] += 0.97
    return Table(SIZE, LENGTH, chances)


def test_renoising_finds_the_peak_and_stops_when_nothing_moves() -> None:
    table = peaked_table()
    peak = run(Renoise(), UNIFORM, 60, steps=48, table=table)
    hits = (peak.tokens == table.sequences[47]).all(-1).double().mean()
    assert hits > 0.95
    assert peak.num_forwards.double().mean() < 12
    assert peak.num_forwards.max() < 48
    flat = Table(SIZE, LENGTH, torch.full((SIZE**LENGTH,), 1 / SIZE**LENGTH, dtype=torch.float64))
    restless = run(Renoise(calm=0.0), UNIFORM, 5, steps=10, table=flat)
    assert set(restless.num_forwards.tolist()) == {10}


def test_a_finished_row_rests_while_others_go_on() -> None:
    table, seeds = TABLE, list(range(30))
    sampler = Renoise(gamma=2.0, hot=1.0, cold=1.0, window=1, calm=0.8)
    together = run(sampler, UNIFORM, 30, steps=12, seeds=seeds, table=table)
    assert len(set(together.num_forwards.tolist())) > 2
    for row in range(0, 30, 3):
        alone = run(sampler, UNIFORM, 1, steps=12, seeds=[seeds[row]], table=table)
        assert alone.tokens[0].equal(together.tokens[row])
        assert alone.num_forwards[0] == together.num_forwards[row]


def renoised(logits: Tensor, tokens: Tensor, time: float, move: Move) -> Step:
    look = look_of(UNIFORM, tokens, logits, move)
    return Renoise(gamma=0.2, hot=100.0, cold=0.2).step(replace(look, time=torch.full_like(look.time, time)))


def test_renoising_judges_tokens_with_what_they_show() -> None:
    """Flat leave-one-out laws: a canvas that is hardly noisy is certain of what it shows, a noisy one of nothing."""
    tokens = torch.tensor([[0, 2, 1, 1]])
    late = renoised(torch.zeros(1, 4, SIZE), tokens, 0.001, Move(0.0, 0.0))
    assert late.tokens.equal(tokens)
    assert not late.noisy.any()
    early = renoised(torch.zeros(1, 4, SIZE), tokens, 1.0, Move(0.0, 0.0))
    assert int(early.noisy.sum()) == 3  # one is accepted, for progress


def test_renoising_cools_down() -> None:
    logits = torch.tensor([3.0, 0.0, 0.0]).expand(1, 4, SIZE)
    tokens = torch.tensor([[1, 2, 1, 2]])
    accepted = [4 - int(renoised(logits, tokens, 1.0, Move(t, 0.0)).noisy.sum()) for t in (1.0, 0.0)]
    assert accepted == [1, 4]


@dataclass(frozen=True)
class Watcher(Sampler):
    """A sampler that keeps what it was shown."""

    inner: Sampler
    looks: list[Look] = field(default_factory=list)

    def check(self, process: Process) -> None:
        self.inner.check(process)

    def step(self, look: Look) -> Step:
        self.looks.append(look)
        return self.inner.step(look)


def test_confidence_is_the_probability_a_token_had_when_it_was_written() -> None:
    watcher = Watcher(RescaledRemasking(0.7))
    run(watcher, MASKED, 20, steps=8)
    written = torch.zeros(20, LENGTH)
    num_rewritten = 0
    for before, after in pairwise(watcher.looks):
        changed = after.tokens != before.tokens
        chances = before.logits.softmax(-1).gather(-1, after.tokens.clamp_max(SIZE - 1)[..., None])[..., 0]
        written = torch.where(changed, chances.float(), written)
        num_rewritten += int((changed & (before.tokens < SIZE)).sum())
        torch.testing.assert_close(after.confidence, written)
    assert num_rewritten > 0


def test_renoising_waits_for_its_window() -> None:
    certain = Table(SIZE, LENGTH, torch.eye(SIZE**LENGTH, dtype=torch.float64)[31])
    for window in (0, 1, 4):
        done = run(Renoise(window=window), UNIFORM, 5, steps=20, table=certain)
        assert set(done.num_forwards.tolist()) == {window + 1}
        assert (done.tokens == certain.sequences[31]).all()


def test_the_noise_is_keyed_by_the_place_in_the_sequence() -> None:
    """A canvas draws what a longer one draws at the same places, and something else at other places."""

    def at(start: int, length: int) -> Tensor:
        blank = torch.zeros(30, length, dtype=torch.int64)
        return sample(
            lambda tokens, time, belief=None: torch.zeros(*tokens.shape, SIZE),
            MASKED,
            blank,
            blank == 0,
            Ancestral(),
            steps=4,
            seeds=range(30),
            start=start,
        ).tokens

    assert at(2, 2).equal(at(0, 4)[:, 2:])
    assert not at(2, 2).equal(at(0, 2))


def test_the_shape_cuts_the_law() -> None:
    best = sample(
        denoiser_of(TABLE, MASKED),
        MASKED,
        torch.zeros(9, LENGTH, dtype=torch.int64),
        torch.ones(9, LENGTH, dtype=torch.bool),
        Unmask(LeftToRight()),
        steps=LENGTH,
        seeds=range(9),
        shape=Shape(temperature=0),
    )
    assert (best.tokens == best.tokens[0]).all()


def test_a_mask_inside_the_vocabulary_is_never_drawn() -> None:
    process = Masked(SIZE, 1, LINEAR)
    blank = torch.zeros(50, LENGTH, dtype=torch.int64)
    for sampler in (Ancestral(), Unmask(TopK()), CappedRemasking()):
        done = sample(
            lambda tokens, time, belief=None: torch.zeros(*tokens.shape, SIZE),
            process,
            blank,
            blank == 0,
            sampler,
            steps=5,
            seeds=range(50),
        )
        assert set(done.tokens.flatten().tolist()) == {0, 2}


def refused(message: str, **changes: object) -> None:
    blank = torch.zeros(2, LENGTH, dtype=torch.int64)
    arguments: dict[str, object] = {
        "process": MASKED,
        "tokens": blank,
        "free": blank == 0,
        "sampler": Ancestral(),
        "steps": 3,
        "seeds": [0, 1],
    }
    with pytest.raises(UsageError, match=re.escape(message)):
        sample(denoiser_of(TABLE, MASKED), **{**arguments, **changes})  # type: ignore[arg-type]


def test_refusals_come_before_the_first_forward() -> None:
    blank = torch.zeros(2, LENGTH, dtype=torch.int64)
    refused(
        "Renoise(gamma=0.1, hot=0.8, cold=0.4, window=2, calm=0.05) does not fit the process Masked",
        sampler=Renoise(),
    )
    refused("does not fit the process Uniform", process=UNIFORM, sampler=Unmask(Threshold()))
    refused("steps=0 must be at least 1", steps=0)
    refused("3 seeds do not fit", seeds=[0, 1, 2])
    refused("torch.int64", free=blank)
    refused("outside the vocabulary of 3", free=blank > 0, tokens=blank + 3)
    clipped = Masked(SIZE, SIZE, SCHEDULES.parse("clipped"))
    refused(
        "cannot end at clean tokens: Clipped(low=0.3, high=0.8) leaves 0.3 of the tokens", process=clipped
    )
