"""Fused and tree speculation write the autoregressive text: greedy token for token, sampled in law."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from test_lossless import LENGTH, PROMPT, VOCAB_SIZE, exact_law

from unmask.decoding import proposal
from unmask.decoding.generate import generate, stream
from unmask.decoding.options import Options
from unmask.decoding.proposal import Settled
from unmask.layout import Segment
from unmask.model import packed
from unmask.model.denoiser import Denoiser
from unmask.model.packed import Branch
from unmask.testing import check_lossless
from unmask.tokenizer import Tokenizer

MakeDenoiser = Callable[..., Denoiser]

WAYS: Sequence[dict[str, int]] = (
    {"tree_size": 1},
    {"tree_size": 6},
    {"num_predrafts": 1},
    {"num_predrafts": 99},
    {"tree_size": 12, "num_predrafts": 3},
)


def options_of(way: dict[str, Any], **changes: Any) -> Options:
    return replace(Options("speculative", block_length=5, max_tokens=20, **way), **changes)


@pytest.mark.parametrize("logit_shift", [True, False])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_greedy(
    make_denoiser: MakeDenoiser,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    way: dict[str, int],
    logit_shift: bool,
) -> None:
    for seed, num_allowed in ((0, 3), (1, None)):
        denoiser = make_denoiser(seed=seed, num_allowed=num_allowed, logit_shift=logit_shift)
        check_lossless(denoiser, tokenizer, prompts[:3], options_of(way))
        check_lossless(
            denoiser, tokenizer, prompts[:1], options_of(way, frequency_penalty=1.0, num_logprobs=2)
        )


def test_ends(make_denoiser: MakeDenoiser, tokenizer: Tokenizer) -> None:
    """Texts of every length up to a few blocks, and stops."""
    denoiser = make_denoiser(num_allowed=3)
    for way in WAYS[1::2]:
        for max_tokens in range(1, 9):
            check_lossless(
                denoiser, tokenizer, [[5, 4]], options_of(way, block_length=3, max_tokens=max_tokens)
            )
        for token in range(5):
            check_lossless(denoiser, tokenizer, [[5, 4]], options_of(way, stop_token_ids=(token,)))


def phases(denoiser: Denoiser, tokenizer: Tokenizer, options: Options) -> Counter[str]:
    return Counter(event.phase for event in list(stream(denoiser, tokenizer, [5, 4, 9], options))[:-1])  # type: ignore[union-attr]


def test_with_every_pre_draft_a_cycle_is_one_forward(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer
) -> None:
    denoiser = make_denoiser(num_allowed=3, logit_shift=False)
    every = phases(denoiser, tokenizer, options_of({"num_predrafts": 99}))
    some = phases(denoiser, tokenizer, options_of({"num_predrafts": 1}))
    none = phases(denoiser, tokenizer, options_of({"tree_size": 5}))
    assert every["draft"] == 1
    assert every["draft"] < some["draft"] < some["verify"]
    assert none["draft"] == none["verify"]


def test_several_candidates_and_pre_drafts_matter_in_these_tests(
    make_denoiser: MakeDenoiser,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accepted nodes off the trunk, next to others, else the tests above would prove little."""
    seen: list[tuple[int, int]] = []
    settle = proposal.Proposal.settle

    def noted(self: proposal.Proposal, *rest: Any) -> Settled:
        settled = settle(self, *rest)
        seen.append((len(settled.accepted), settled.num_stored))
        return settled

    monkeypatch.setattr(proposal.Proposal, "settle", noted)
    for logit_shift in (True, False):
        denoiser = make_denoiser(num_allowed=3, logit_shift=logit_shift)
        for prompt in prompts[:6]:
            generate(denoiser, tokenizer, prompt, options_of({"tree_size": 12, "num_predrafts": 3}))
    assert len({accepted for accepted, _ in seen}) >= 3
    assert sum(0 < stored < accepted for accepted, stored in seen) >= 5


def _adapt_branches(patch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **rest: Any) -> Segment:
        made = Segment(*arguments, **rest)
        return replace(made, adapter=made.adapter or made.parent is not None)

    patch.setattr(packed, "Segment", wrong)


def _show_siblings(patch: pytest.MonkeyPatch) -> None:
    """A branch sees a token more of its parent: the candidate beside its first one."""

    def wrong(tokens: Sequence[int], offset: int, parent: int | None = None, places: Any = None) -> Branch:
        return Branch(tokens, offset + (places is None), parent, places)

    patch.setattr(proposal, "Branch", wrong)


def _keep_the_trunk(patch: pytest.MonkeyPatch) -> None:
    """What the trunk stored passes for what was accepted beside it."""
    settle = proposal.Proposal.settle

    def wrong(self: proposal.Proposal, *rest: Any) -> Settled:
        settled = settle(self, *rest)
        return replace(settled, num_stored=min(len(settled.accepted), len(self.trunk)))

    patch.setattr(proposal.Proposal, "settle", wrong)


def _mix_up_nodes(patch: pytest.MonkeyPatch) -> None:
    """Laws come in the order of runs and are read in the order of growth."""
    settle = proposal.Proposal.settle

    def wrong(self: proposal.Proposal, *rest: Any) -> Settled:
        runs = self.tree.runs
        self.tree.__dict__["runs"] = (runs[0], *reversed(runs[1:]))
        try:
            return settle(self, *rest)
        finally:
            self.tree.__dict__["runs"] = runs

    patch.setattr(proposal.Proposal, "settle", wrong)


@pytest.mark.parametrize("fault", [_adapt_branches, _show_siblings, _keep_the_trunk, _mix_up_nodes])
def test_a_planted_fault_is_caught(
    make_denoiser: MakeDenoiser,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    denoiser, options = make_denoiser(num_allowed=3), options_of({"tree_size": 12, "num_predrafts": 2})
    check_lossless(denoiser, tokenizer, prompts[:8], options)
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="the autoregressive one is"):
        check_lossless(denoiser, tokenizer, prompts[:8], options)


NUM_SEEDS = 400


def p_value(denoiser: Denoiser, tokenizer: Tokenizer, options: Options) -> float:
    """Return Pearson's chi-square p-value of many seeds against the autoregressive law; rare outcomes share a bin."""
    law = exact_law(denoiser, options)
    seen = Counter(
        generate(denoiser, tokenizer, PROMPT, replace(options, seed=seed, max_tokens=LENGTH)).token_ids
        for seed in range(NUM_SEEDS)
    )
    assert all(law[tokens] > 0 for tokens in seen)
    common = [tokens for tokens, mass in law.items() if mass * NUM_SEEDS >= 5]
    expected = [law[tokens] * NUM_SEEDS for tokens in common]
    observed = [seen[tokens] for tokens in common]
    rest = NUM_SEEDS - sum(expected)
    assert len(common) > 15
    return float(chisquare([*observed, NUM_SEEDS - sum(observed)], [*expected, rest]).pvalue)


@pytest.mark.parametrize(
    ("way", "logit_shift"),
    [({"tree_size": 5}, False), ({"num_predrafts": 9}, True), ({"tree_size": 4, "num_predrafts": 9}, False)],
)
def test_sampled_law(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, way: dict[str, int], logit_shift: bool
) -> None:
    denoiser = make_denoiser(vocab_size=VOCAB_SIZE, num_layers=1, sharpness=1.5, logit_shift=logit_shift)
    options = options_of(way, block_length=3, temperature=0.9, top_k=3)
    assert p_value(denoiser, tokenizer, options) > 1e-3


def test_a_draft_taken_for_another_law_is_found(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next tree is judged by the canvas it did not come from."""
    denoiser = make_denoiser(vocab_size=VOCAB_SIZE, num_layers=1, sharpness=1.5)
    settle = proposal.Proposal.settle

    def wrong(self: proposal.Proposal, *rest: Any) -> Settled:
        flat = replace(self, offer=_Tilted(self.offer))
        return settle(flat, *rest)

    monkeypatch.setattr(proposal.Proposal, "settle", wrong)
    options = options_of({"num_predrafts": 9}, block_length=3, temperature=0.9, top_k=3)
    assert p_value(denoiser, tokenizer, options) < 1e-4


class _Tilted:
    """An offer that tells another law than it drew from."""

    def __init__(self, offer: Any) -> None:
        self._offer, self.depth = offer, offer.depth

    def law(self, path: tuple[int, ...], taken: Sequence[int]) -> torch.Tensor:
        law: torch.Tensor = self._offer.law(path, taken)
        return law.flip(0) + 0.01
