"""Markov chains against sums over every sequence."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from enumerated import Table, every_sequence
from hypothesis import given
from hypothesis import strategies as st

from unmask.diffusion import SCHEDULES, Prediction, build_process
from unmask.diffusion.markov import MarkovChain
from unmask.diffusion.orders import Rounds, bisection, left_to_right, shuffled, strided


def chain_of(vocab_size: int, seed: int = 0) -> MarkovChain:
    """Return a chain that does not start from its stationary law."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab_size + 1, vocab_size, dtype=torch.float64, generator=generator)
    laws = (1.5 * logits).softmax(-1)
    return MarkovChain(laws[0], laws[1:])


def table_of(chain: MarkovChain, length: int) -> Table:
    chances = chain.log_prob(every_sequence(chain.vocab_size, length)).exp()
    return Table(chain.vocab_size, length, chances)


def flipping(flip: float) -> MarkovChain:
    return MarkovChain.stationary(torch.tensor([[1 - flip, flip], [flip, 1 - flip]], dtype=torch.float64))


def joint_entropy(table: Table, positions: list[int]) -> float:
    """Return the entropy of some of a table's tokens."""
    shape = [table.vocab_size] * table.length
    others = [place for place in range(table.length) if place not in positions]
    law = table.chances.reshape(shape)
    return float(torch.special.entr(law.sum(others) if others else law).sum())


def test_log_prob_is_the_product_along_the_chain() -> None:
    chain = chain_of(3)
    tokens = [2, 0, 0, 1]
    chance = float(
        chain.initial[2] * chain.transition[2, 0] * chain.transition[0, 0] * chain.transition[0, 1]
    )
    assert float(chain.log_prob(torch.tensor(tokens)).exp()) == pytest.approx(chance)
    assert float(table_of(chain, 4).chances.sum()) == pytest.approx(1)


@pytest.mark.parametrize("positions", [[0], [2], [0, 3], [1, 2], [0, 1, 3], [0, 1, 2, 3], []])
def test_entropies(positions: list[int]) -> None:
    chain = chain_of(3)
    table = table_of(chain, 4)
    assert chain.subset_entropy(positions) == pytest.approx(
        joint_entropy(table, positions) if positions else 0
    )
    assert chain.entropy(4) == pytest.approx(table.entropy)


@pytest.mark.parametrize("kind", ["posterior", "leave_one_out"])
@pytest.mark.parametrize("noise", ["masked", "uniform", "hybrid:0.3"])
def test_the_denoiser_is_exact(noise: str, kind: Prediction) -> None:
    chain = chain_of(3)
    table = table_of(chain, 4)
    process = build_process(noise, 3, 3, SCHEDULES.parse("cosine"))
    noisy = every_sequence(process.num_states, 4)
    for t in (0.2, 0.7):
        time = torch.tensor(t, dtype=torch.float64)
        found = chain.denoiser(process, kind)(noisy, time.expand(len(noisy), 1)).exp()
        assert torch.allclose(found, table.predict(process, noisy, time, kind).exp(), atol=1e-12)


def test_a_mask_hides_at_any_time() -> None:
    chain = chain_of(3)
    tokens = torch.tensor([[3, 1, 3, 2]])
    for noise in ("masked", "hybrid:0.1"):
        process = build_process(noise, 3, 3, SCHEDULES.parse("linear"))
        laws = [chain.denoiser(process)(tokens, torch.tensor([[t]]).double()) for t in (0.0, 1.0)]
        assert laws[0].exp().isfinite().all()
        assert torch.allclose(laws[0][:, :, 0], laws[1][:, :, 0]) == (noise == "masked")


def conditional_total_correlations(table: Table, rounds: Rounds) -> float:
    """Return KL(law || decoding by rounds) with the decoder's law of every sequence written out."""
    process = build_process("masked", table.vocab_size, table.vocab_size, SCHEDULES.parse("linear"))
    tokens, chances = table.sequences, torch.zeros(len(table.sequences)).double()
    noisy = torch.full_like(tokens, process.vocab_size)
    for places in rounds:
        laws = table.predict(process, noisy, torch.tensor(0.5), "posterior")
        chances = chances + laws.gather(-1, tokens[..., None])[:, places, 0].sum(-1)
        noisy[:, places] = tokens[:, places]
    return float((table.chances * (table.chances.log() - chances)).sum())


@pytest.mark.parametrize(
    "rounds",
    [
        [[0, 1, 2, 3]],
        [[0, 1], [2, 3]],
        [[0, 2], [1, 3]],
        [[3, 0], [1], [2]],
        [[1, 3, 2], [0]],
        bisection(4),
    ],
)
def test_the_cost_of_an_order_is_the_divergence_of_its_decoder(rounds: Rounds) -> None:
    chain = chain_of(3, seed=1)
    found = chain.schedule_kl(rounds)
    assert found == pytest.approx(conditional_total_correlations(table_of(chain, 4), rounds), abs=1e-12)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 100])
def test_bisection_is_exact_in_logarithmically_many_rounds(length: int) -> None:
    rounds = bisection(length)
    assert sorted(itertools.chain(*rounds)) == list(range(length))
    assert len(rounds) == length.bit_length()
    assert chain_of(4).schedule_kl(rounds) == pytest.approx(0, abs=1e-10)


def test_geometry_matters_more_than_the_number_of_rounds() -> None:
    """Flip 0.1, 64 tokens, 8 rounds: neighbours together cost most, distant tokens least."""
    chain = flipping(0.1)
    generator = torch.Generator().manual_seed(0)
    neighbours = chain.schedule_kl(left_to_right(64, 8))
    random = sum(chain.schedule_kl(shuffled(64, 8, generator)) for _ in range(10)) / 10
    distant = chain.schedule_kl(strided(64, 8))
    assert neighbours > 5 * random > 25 * distant > 0
    # Closed form: a run of eight after its neighbour costs the sum over gaps of h(gap) - h(1), h the flip entropy.
    entropies = []
    for gap in range(1, 9):
        flip = (1 - 0.8**gap) / 2
        entropies.append(-flip * math.log(flip) - (1 - flip) * math.log(1 - flip))
    later = sum(entropies) - 8 * entropies[0]
    first = 7 * (math.log(2) - entropies[0])
    assert neighbours == pytest.approx(first + 7 * later)


def test_the_documented_table() -> None:
    chain = flipping(0.1)
    page = (Path(__file__).parents[2] / "docs" / "diffusion.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (\S+) ± \S+ \| (\S+) \|$", page, flags=re.MULTILINE)
    assert [row[0] for row in rows] == ["4", "8", "16", "32"]
    for number, run, random, stride in rows:
        count, generator = int(number), torch.Generator().manual_seed(0)
        assert f"{chain.schedule_kl(left_to_right(64, count)):.3g}" == run
        assert f"{chain.schedule_kl(strided(64, count)):.3g}" == stride
        mean = sum(chain.schedule_kl(shuffled(64, count, generator)) for _ in range(5)) / 5
        assert mean == pytest.approx(float(random), rel=0.2)


@given(st.integers(1, 40), st.data())
def test_orders_decide_every_position_once(length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, length))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for rounds in (left_to_right(length, count), strided(length, count), shuffled(length, count, generator)):
        assert sorted(itertools.chain(*rounds)) == list(range(length))
        assert len(rounds) == count
        assert max(map(len, rounds)) - min(map(len, rounds)) <= 1


def test_a_round_of_a_permutation_is_rarely_one() -> None:
    """All n items at once: KL = log(n^n / n!); one at a time: 0 (E1 of any parallel decoder)."""
    for size in (2, 3, 4):
        sequences = every_sequence(size, size)
        is_permutation = (sequences.sort(-1).values == torch.arange(size)).all(-1).double()
        table = Table(size, size, is_permutation / is_permutation.sum())
        together = sum(joint_entropy(table, [place]) for place in range(size)) - table.entropy
        assert together == pytest.approx(math.log(size**size / math.factorial(size)))


def test_samples_follow_the_law() -> None:
    chain = chain_of(3)
    tokens = chain.sample(20_000, 3, torch.Generator().manual_seed(0))
    places = (tokens * torch.tensor([9, 3, 1])).sum(-1)
    share = torch.bincount(places, minlength=27) / len(tokens)
    chances = table_of(chain, 3).chances
    assert ((share - chances).abs() < 5 * (chances * (1 - chances) / len(tokens)).sqrt()).all()


def test_the_stationary_law_stays() -> None:
    chain = MarkovChain.random(6, torch.Generator().manual_seed(0))
    assert torch.allclose(chain.initial @ chain.transition, chain.initial, atol=1e-12)


def test_laws_are_checked() -> None:
    law = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match="a transition of shape"):
        MarkovChain(law, law[None])
    with pytest.raises(ValueError, match=r"sums to 1\.5"):
        MarkovChain(law, torch.tensor([[0.5, 0.5], [0.5, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("size", [2, 3])
def test_chi_square_is_uniform_for_the_chain_itself_and_finds_another(size: int) -> None:
    chain = MarkovChain.random(6, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    found = [chain.chi_square(chain.sample(100, 20, generator), size=size) for _ in range(100)]
    share = sum(each.p_value < 0.1 for each in found) / len(found)
    assert 0.01 < share < 0.22
    mean = sum(each.statistic for each in found) / sum(each.degrees for each in found)
    assert mean == pytest.approx(1, abs=0.1)
    other = MarkovChain.stationary(0.9 * chain.transition + 0.1 / 6)
    assert other.chi_square(chain.sample(400, 20, generator), size=size).p_value < 1e-4


def test_chi_square_of_too_few_counts_compares_nothing() -> None:
    chain = MarkovChain.random(6, torch.Generator().manual_seed(0))
    found = chain.chi_square(torch.tensor([[0, 1, 2]]), size=2)
    assert (found.statistic, found.degrees, found.p_value) == (0, 0, 1)
