"""Fused and tree speculation write the autoregressive text: greedy token for token, sampled in law."""

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_draft_tree import Coin, Fate, let_fate_decide, outcomes
from test_lossless import turned_into
from torch import Tensor

from unmask.decoding import proposal, text_law
from unmask.decoding.candidates import sampling_law
from unmask.decoding.generate import generate, stream
from unmask.decoding.offer import offer_of
from unmask.decoding.options import Options
from unmask.decoding.proposal import Moment, Settled
from unmask.layout import Segment
from unmask.model import packed
from unmask.model.cache import Cache, KVCache
from unmask.model.denoiser import Denoiser, Draft
from unmask.model.packed import Branch, Part
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


def logits_of(text: Sequence[int], place: int | None = None) -> Tensor:
    """Return made-up logits (V,) over two letters: after a text, or at a place of a canvas after it."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr((list(text), place)).encode()))
    logits = torch.full((32,), -torch.inf)
    logits[2:4] = torch.randn(2, generator=generator) * 1.5
    return logits


class TextCache(KVCache):
    """A cache whose keys and values are the tokens themselves."""

    def __init__(self) -> None:
        self.lengths, self.tokens = [0], list[int]()

    def store(self, tokens: Sequence[int], start: int) -> list[int]:
        """Store tokens and return the text up to them."""
        assert start <= self.lengths[0]
        self.tokens[start:] = tokens
        self.lengths = [len(self.tokens)]
        return list(self.tokens)


class TableDenoiser(Denoiser):
    """A denoiser that looks its laws up."""

    def new_cache(self, capacity: int, *, num_rows: int = 1) -> KVCache:
        return TextCache()

    def causal(
        self, tokens: Tensor, start: int, cache: KVCache, *, row: int = 0, num_heads: int = 1
    ) -> Tensor:
        assert isinstance(cache, TextCache)
        text = cache.store(tokens.tolist(), start)
        return torch.stack([logits_of(text[: len(text) - back]) for back in reversed(range(num_heads))])

    def draft(
        self, pending: Sequence[int], canvas: Tensor, start: int, cache: KVCache, **unused: Any
    ) -> Draft:
        assert isinstance(cache, TextCache)
        text = cache.store(pending, start)
        return Draft(logits_of(text), torch.stack([logits_of(text, place) for place in range(len(canvas))]))

    def laws(self, parts: Sequence[Part], cache: Cache) -> tuple[Tensor, ...]:
        (part,) = parts
        assert isinstance(cache, TextCache)
        return (table_laws(part, cache),)


def table_laws(part: Part, cache: TextCache) -> Tensor:
    """Answer a part from the tables."""
    text = cache.store(part.tokens, part.start)
    found = [logits_of(text[: len(text) - back]) for back in reversed(range(part.num_laws))]
    grown = [(part.start, text)]
    for branch in part.branches:
        start, above = grown[0 if branch.parent is None else branch.parent + 1]
        root = above[: start + branch.offset]
        grown.append((len(root), [*root, *branch.tokens]))
        if branch.places is None:
            found += [logits_of([*root, *branch.tokens[: place + 1]]) for place in range(len(branch.tokens))]
        else:
            found += [logits_of(root, place) for place in branch.places]
    return torch.stack(found)


def largest_gap(
    patch: pytest.MonkeyPatch, denoiser: Denoiser, tokenizer: Tokenizer, options: Options
) -> float:
    """Return how far the law of the texts that a loop writes is from the autoregressive one, by exact sums."""
    tables = turned_into(TableDenoiser, denoiser)
    prompt = [5, 4]

    def program(fate: Fate) -> tuple[int, ...]:
        let_fate_decide(patch, fate)
        patch.setattr(
            text_law, "draw", lambda law, noise: torch.tensor([fate.choose(row.tolist()) for row in law])
        )
        patch.setattr(Moment, "node_noise", lambda self, count, stream: [Coin(fate)] * count)
        return generate(tables, tokenizer, prompt, options).token_ids

    found = outcomes(program)
    wanted = {}
    for text in itertools.product((2, 3), repeat=options.max_tokens):
        laws = [sampling_law(logits_of([*prompt, *text[:n]]), options) for n in range(len(text))]
        wanted[text] = math.prod(float(law[token]) for law, token in zip(laws, text, strict=True))
    assert set(found) <= set(wanted)
    return max(abs(found.get(text, 0.0) - mass) for text, mass in wanted.items())


DRAWN_WAYS = [
    {"tree_size": 3},
    {"num_predrafts": 9},
    {"num_predrafts": 1},
    {"tree_size": 3, "num_predrafts": 9},
]


@pytest.mark.parametrize("way", DRAWN_WAYS, ids=str)
def test_what_the_loop_draws_follows_the_autoregressive_law(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, way: dict[str, int]
) -> None:
    options = options_of(way, block_length=3, max_tokens=4, temperature=0.9)
    assert largest_gap(monkeypatch, make_denoiser(logit_shift=False), tokenizer, options) < 1e-9


def test_a_draft_taken_for_another_law_is_found(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates are judged as if they had been drawn from the square of their law."""
    offered = offer_of

    def wrong(logits: Tensor, *rest: Any, **named: Any) -> Any:
        offer: Any = offered(logits, *rest, **named)
        drawn_from = offer.law
        offer.law = lambda path, taken: drawn_from(path, taken) ** 2
        return offer

    monkeypatch.setattr(proposal, "offer_of", wrong)
    options = options_of({"num_predrafts": 9}, block_length=3, max_tokens=4, temperature=0.9)
    assert largest_gap(monkeypatch, make_denoiser(logit_shift=False), tokenizer, options) > 1e-3
