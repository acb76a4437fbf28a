"""A decision's parts: how laws drift, what a rule is shown, and when deciding together is safe."""

from itertools import pairwise

import pytest
import torch
from enumerated import Table
from enumerated_sampler import denoiser_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape
from unmask.decoding.decision import Confidence, Decision, Drift, decide
from unmask.decoding.rules import Factor, Klass, Rule, Threshold
from unmask.diffusion import SCHEDULES, Masked
from unmask.rng import Stream


def test_drift_is_the_divergence_from_the_last_law_newest_first() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, 5, dtype=torch.float64, generator=generator) for _ in range(4)]
    laws = [one.softmax(-1) for one in logits]
    moves = [(new * (new / old).log()).sum(-1) for old, new in pairwise(laws)]
    drift = Drift(2)
    first, second, third, fourth = (drift.update(one) for one in logits)
    assert first.isinf().all()
    torch.testing.assert_close(second[..., 0].double(), moves[0], atol=1e-6, rtol=1e-6)
    assert second[..., 1].isinf().all()
    torch.testing.assert_close(third.double(), torch.stack([moves[1], moves[0]], -1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(fourth.double(), torch.stack([moves[2], moves[1]], -1), atol=1e-6, rtol=1e-6)


def test_drift_of_banned_tokens_and_without_a_memory() -> None:
    drift = Drift(1)
    drift.update(torch.tensor([[[0.0, -torch.inf, 0.0]]]))
    assert drift.update(torch.tensor([[[0.0, -torch.inf, 0.0]]])).tolist() == [[[0.0]]]
    assert drift.update(torch.tensor([[[0.0, 0.0, -torch.inf]]])).isinf().all()  # what was impossible happens
    assert Drift(0).update(torch.zeros(2, 3, 5)).shape == (2, 3, 0)


def decision_of(rule: Rule, law: Tensor, confidence: Confidence, *, seed: int = 0) -> Decision:
    """Decide one fully open canvas with laws (L, K)."""
    length = len(law)
    return decide(
        rule,
        law.log()[None],
        torch.ones(1, length, dtype=torch.bool),
        Shape(),
        Keys.of_one(seed, range(length), 1),
        steps_left=(None,),
        changes=torch.zeros(1, length, rule.memory),
        confidence=confidence,
    )


def test_confidence_is_the_drawn_tokens_or_the_best_ones() -> None:
    law = torch.tensor([[0.7, 0.3]], dtype=torch.float64).expand(400, 2)
    drawn, highest = (decision_of(Threshold(0.5), law, way) for way in ("drawn", "highest"))
    assert drawn.candidates.tokens.equal(highest.candidates.tokens)
    assert drawn.chosen.equal(drawn.candidates.tokens == 0)
    assert highest.chosen.all()
    assert 0.2 < (drawn.candidates.tokens == 1).double().mean() < 0.4


def test_the_candidates_are_drawn_by_the_keys() -> None:
    law = torch.full((6, 4), 0.25, dtype=torch.float64)
    noise = Keys.of_one(5, range(6), 1).noise(Stream.TOKEN)
    found = decision_of(Threshold(), law, "drawn", seed=5).candidates.tokens
    assert found.equal((noise * 4).long())


def peaked(length: int, error: float, generator: torch.Generator) -> Table:
    """Return a random law over binary texts in which no token's error exceeds `error`."""
    chances = torch.rand(2**length, dtype=torch.float64, generator=generator) ** 4
    text = int(torch.randint(2**length, (), generator=generator))
    chances[text] = 0
    table = Table(2, length, chances / chances.sum())
    most = float((1 - table.marginals[torch.arange(length), table.sequences[text]]).max())
    chances = table.chances * (error / most)
    chances[text] = 1 - chances.sum()
    return Table(2, length, chances)


@given(st.integers(1, 4), st.integers(0, 10_000))
def test_confident_enough_together_means_right_together(length: int, seed: int) -> None:
    """With all marginals above 1 - e and (n + 1) e <= 1, the best tokens are the best text (arXiv 2505.22618)."""
    table = peaked(length, 0.999 / (length + 1), torch.Generator().manual_seed(seed))
    process = Masked(2, 2, SCHEDULES.parse("linear"))
    logits = denoiser_of(table, process)(torch.full((1, length), 2), torch.ones(1, 1))
    decision = decision_of(Factor(1.0), logits[0].softmax(-1), "highest")
    assert decision.chosen.all()
    assert logits[0].argmax(-1).equal(table.sequences[table.chances.argmax()])


def test_a_little_less_confident_is_not_enough() -> None:
    """Two tokens of confidence 2/3 - 0.01: together they are less probable than each with the other's opposite."""
    slack = 0.01
    chances = torch.tensor([0.0, 1 / 3 + slack, 1 / 3 + slack, 1 / 3 - 2 * slack], dtype=torch.float64)
    table = Table(2, 2, chances)
    assert table.marginals.amax(-1).tolist() == pytest.approx([2 / 3 - slack] * 2)
    assert table.marginals.argmax(-1).tolist() == [1, 1]
    assert int(table.chances.argmax()) != 3
    chosen = decision_of(Factor(1.0), table.marginals, "highest").chosen
    assert int(chosen.sum()) == 1  # and so the rule takes one


def test_klass_works_from_the_drift() -> None:
    rule, drift = Klass(0.6, 0.01, 1), Drift(1)
    before = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.1, 0.0]]])
    now = torch.tensor([[[2.0, 0.0], [3.0, 0.0], [0.1, 0.0]]])

    def chosen(changes: Tensor) -> list[bool]:
        is_open, keys = torch.ones(1, 3, dtype=torch.bool), Keys.of_one(0, range(3), 1)
        shape = Shape(temperature=0)
        return decide(rule, now, is_open, shape, keys, steps_left=(None,), changes=changes).chosen[0].tolist()

    assert chosen(drift.update(before)) == [False, True, False]  # no past: progress, by confidence
    assert chosen(drift.update(now)) == [True, False, False]  # the second is surer, but has just moved
