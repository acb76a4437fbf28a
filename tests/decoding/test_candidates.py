"""Laws, draws and statistics against their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.decoding.candidates import Candidates, Keys, draw, propose, sampling_law
from unmask.decoding.options import Options
from unmask.rng import Stream

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]])


def test_temperature() -> None:
    weights = [math.exp(x / 0.5) for x in (2, 1, 0, -1)]
    law = sampling_law(LOGITS, Options(temperature=0.5))
    assert law.dtype == torch.float64
    assert law[0].tolist() == pytest.approx([*(w / sum(weights) for w in weights), 0], abs=1e-15)


def test_greedy_is_one_hot_whatever_the_cuts() -> None:
    for options in (Options(), Options(top_k=2), Options(top_p=0.1)):
        assert sampling_law(LOGITS, options).tolist() == [[1, 0, 0, 0, 0]]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    assert sampling_law(LOGITS, Options(temperature=1e-300)).tolist() == [[1, 0, 0, 0, 0]]


def test_top_k_keeps_ties() -> None:
    law = sampling_law(torch.tensor([[0.0, 1.0, 0.0, -1.0]]), Options(temperature=1, top_k=2))
    assert (law[0] > 0).tolist() == [True, True, True, False]
    assert sampling_law(LOGITS, Options(temperature=1, top_k=99)).equal(
        sampling_law(LOGITS, Options(temperature=1))
    )


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for top_p, kept in ((0.4, {1}), (0.51, {1, 3}), (0.76, {1, 2, 3}), (0.95, {0, 1, 2, 3})):
        law = sampling_law(logits, Options(temperature=1, top_p=top_p))
        assert {i for i, p in enumerate(law[0].tolist()) if p > 0} == kept
        assert law.sum().item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_top_p_of_a_large_vocabulary(spread: float) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * spread
    law = sampling_law(logits, Options(temperature=1, top_p=0.7))
    plain = sampling_law(logits, Options(temperature=1))
    for kept, all_ in zip(law, plain, strict=True):
        inside = all_[kept > 0]
        assert inside.sum() >= 0.7 - 1e-12
        assert inside.sum() - inside.min() < 0.7
        assert all_[kept == 0].max() < inside.min()
        torch.testing.assert_close(kept[kept > 0], inside / inside.sum())


def test_top_p_keeps_ties() -> None:
    law = sampling_law(torch.tensor([[0.0, 2.0, 0.0, -1.0]]), Options(temperature=1, top_p=0.8))
    assert (law[0] > 0).tolist() == [True, True, True, False]


def test_cuts_come_in_order() -> None:
    # After temperature 2 and top-2 the best token has 0.731^0.5 / (...) = 0.62, so top_p = 0.6 keeps it alone.
    law = sampling_law(LOGITS, Options(temperature=2, top_k=2, top_p=0.6))
    assert law.tolist() == [[1, 0, 0, 0, 0]]
    law = sampling_law(LOGITS, Options(temperature=2, top_p=0.6))
    assert (law[0] > 0).tolist() == [True, True, False, False, False]


weights = st.lists(st.sampled_from([0.0, 1e-15, 0.1, 1.0, 3.0]), min_size=1, max_size=6).filter(any)


@given(weights, st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_distribution_function(row: list[float], noise: float) -> None:
    law = torch.tensor([row], dtype=torch.float64)
    token = int(draw(law, torch.tensor([noise], dtype=torch.float64))[0])
    assert row[token] > 0
    target, below = noise * sum(row), sum(row[:token])
    assert below <= target * (1 + 1e-12)
    assert target <= (below + row[token]) * (1 + 1e-12)


def test_draw_keeps_rare_tokens_and_the_last_one() -> None:
    law = torch.tensor([[1e-15, 1 - 1e-15, 0.0]], dtype=torch.float64)
    noise = [0.0, 5e-16, 2e-15, 1 - 2**-53]
    assert [int(draw(law, torch.tensor([u], dtype=torch.float64))[0]) for u in noise] == [0, 0, 1, 1]


def proposed(logits: Tensor, options: Options, places: list[int], step: int) -> Candidates:
    return propose(logits, options, Keys.of_one(options.seed, places, step).noise(Stream.TOKEN)[0])


def test_statistics_are_those_of_the_plain_softmax() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)) * 2
    found = proposed(logits, Options(temperature=0.3, top_k=3), [4, 5, 6], 1)
    law = logits.softmax(-1)
    best = law.sort(descending=True).values
    torch.testing.assert_close(found.confidence, law[torch.arange(3), found.tokens])
    torch.testing.assert_close(found.entropy, -(law * law.log()).sum(-1))
    torch.testing.assert_close(found.highest, best[:, 0])
    torch.testing.assert_close(found.margin, best[:, 0] - best[:, 1])


def test_banned_tokens_and_single_tokens_have_finite_statistics() -> None:
    found = proposed(LOGITS, Options(), [0], 0)
    assert found.entropy.isfinite().all()
    alone = proposed(torch.zeros(2, 1), Options(temperature=1), [0, 1], 0)
    assert (alone.tokens.tolist(), alone.entropy.tolist(), alone.margin.tolist()) == ([0, 0], [0, 0], [1, 1])


def drawn(rows: Tensor, places: list[int], *, seed: int = 3, step: int = 2) -> list[int]:
    return proposed(rows, Options(temperature=1.0, seed=seed), places, step).tokens.tolist()


def test_candidates_spread_to_their_places() -> None:
    where = torch.tensor([[True, False, True], [False, False, True]])
    found = proposed(torch.eye(3) * 9, Options(), [1, 2, 3], 0).spread(where)
    assert found.tokens.tolist() == [[0, 0, 1], [0, 0, 2]]
    assert (found.confidence > 0.9).tolist() == where.tolist()


def test_batched_laws_and_draws_are_those_of_the_rows() -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(2))
    noise = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    law = sampling_law(logits, Options(temperature=1, top_k=4, top_p=0.8))
    flat = sampling_law(logits.flatten(0, 1), Options(temperature=1, top_k=4, top_p=0.8))
    assert law.flatten(0, 1).equal(flat)
    assert draw(law, noise).flatten().equal(draw(flat, noise.flatten()))


def test_a_candidate_does_not_depend_on_its_block_mates() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    together = drawn(logits, list(range(10, 16)))
    for row in range(6):
        assert drawn(logits[row : row + 1], [10 + row]) == together[row : row + 1]
    assert drawn(logits.flip(0), list(range(15, 9, -1))) == together[::-1]


def test_noise_depends_on_every_key() -> None:
    logits = torch.zeros(20, 1000)
    places = list(range(20))
    first = drawn(logits, places)
    assert first == drawn(logits, places)
    assert len(set(first)) > 15
    assert first != drawn(logits, places, seed=4)
    assert first != drawn(logits, places, step=3)
    tokens, accepts = (Keys.of_one(0, places, 0).noise(stream) for stream in (Stream.TOKEN, Stream.ACCEPT))
    assert (tokens != accepts).all()


def test_min_p_keeps_what_is_within_a_factor_of_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    law = sampling_law(logits, Options(temperature=1, min_p=0.28))
    assert law.tolist() == pytest.approx([5 / 9, 2.5 / 9, 1.5 / 9, 0])
    assert sampling_law(logits, Options(temperature=1, min_p=1)).tolist() == [1, 0, 0, 0]
    squared = sampling_law(logits, Options(temperature=0.5, min_p=0.28))  # temperature comes first
    assert squared.tolist() == [1, 0, 0, 0]


def test_a_bias_comes_first_and_shows_in_the_confidence() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    greedy = Options(logit_bias=((0, 5.0), (2, -100.0)))
    assert sampling_law(logits, greedy).tolist() == [[1, 0, 0]]
    law = sampling_law(logits, Options(temperature=2, logit_bias=((0, 5.0),)))
    assert law.equal(sampling_law(torch.tensor([[5.0, 1.0, 2.0]]), Options(temperature=2)))
    candidates = propose(logits, greedy, torch.zeros(1, dtype=torch.float64))
    assert float(candidates.confidence) == pytest.approx(1 / (1 + math.exp(-4)))
