"""Speculation writes the autoregressive text: greedy token for token, sampled in law."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import ClassVar

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from unmask.decoding import speculation
from unmask.decoding.candidates import sampling_law
from unmask.decoding.generate import generate
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.layout import Layout, Segment
from unmask.model.cache import KVCache
from unmask.model.denoiser import Denoiser, Draft
from unmask.testing import check_lossless
from unmask.tokenizer import Tokenizer

MakeDenoiser = Callable[..., Denoiser]


class BidirectionalCache(Denoiser):
    """A denoiser with a fault: what it verifies is kept as the canvas saw it, both ways and with the adapter."""

    @torch.inference_mode()
    def causal(
        self, tokens: Tensor, start: int, cache: KVCache, *, row: int = 0, num_heads: int = 1
    ) -> Tensor:
        logits = super().causal(tokens, start, cache, row=row, num_heads=num_heads)
        if start and len(tokens) > 1:
            canvas = Segment(start, len(tokens), causal=False, adapter=True, store=True, row=row)
            self.transformer(self.embed(tokens), Layout([canvas]), cache, self.adapter)
        return logits


def turned_into(kind: type[Denoiser], denoiser: Denoiser) -> Denoiser:
    return kind(*(getattr(denoiser, item.name) for item in fields(Denoiser)))


@pytest.mark.parametrize("logit_shift", [True, False])
@pytest.mark.parametrize("block_length", [1, 2, 4, 8, 16])
def test_greedy(
    make_denoiser: MakeDenoiser,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    block_length: int,
    logit_shift: bool,
) -> None:
    for seed, num_allowed in ((0, 3), (1, None)):
        denoiser = make_denoiser(seed=seed, num_allowed=num_allowed, logit_shift=logit_shift)
        options = Options("speculative", block_length=block_length, max_tokens=18)
        check_lossless(denoiser, tokenizer, prompts[:4], options)


def test_greedy_with_stops(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    denoiser = make_denoiser(num_allowed=3)
    letters = [tokenizer.decode([token]) for token in range(2, 5)]
    for stop in map("".join, itertools.product(letters, repeat=2)):
        options = Options("speculative", block_length=6, max_tokens=12, stop=(stop,))
        check_lossless(denoiser, tokenizer, prompts[:2], options)
    for token in range(5):
        options = Options("speculative", block_length=6, max_tokens=12, stop_token_ids=(token,))
        check_lossless(denoiser, tokenizer, prompts[:2], options)


def test_several_drafts_are_accepted_in_these_tests(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Else the tests above would prove little."""
    options = Options("speculative", block_length=5, max_tokens=24)
    for logit_shift in (True, False):
        denoiser = make_denoiser(num_allowed=3, logit_shift=logit_shift)
        lengths = [
            n for prompt in prompts for n in generate(denoiser, tokenizer, prompt, options).accepted_lengths
        ]
        assert len(set(lengths)) >= 3
        assert max(lengths) >= 3


def test_bidirectional_keys_and_values_in_the_cache_are_found(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    options = Options("speculative", block_length=4, max_tokens=24)
    denoiser = make_denoiser()
    check_lossless(denoiser, tokenizer, prompts[:6], options)
    with pytest.raises(AssertionError, match="the autoregressive one is"):
        check_lossless(turned_into(BidirectionalCache, denoiser), tokenizer, prompts[:6], options)


def test_the_check_wants_greedy_speculation(make_denoiser: MakeDenoiser, tokenizer: Tokenizer) -> None:
    for options in (Options("ar"), Options("speculative", temperature=1.0)):
        with pytest.raises(ValueError, match="needs greedy options"):
            check_lossless(make_denoiser(), tokenizer, [[3]], options)


VOCAB_SIZE, LENGTH, PROMPT = 4, 4, [2, 3]
NUM_SEEDS = 2000


class CallLog(KVCache):
    """A cache that remembers the calls made on it."""

    calls: tuple[tuple[object, ...], ...] = ()


class RememberingDenoiser(Denoiser):
    """A denoiser that makes each chain of calls once, on a real cache, and knows the answer from then on."""

    answers: ClassVar[dict[object, Tensor | Draft]] = {}

    def new_cache(self, capacity: int, *, num_rows: int = 1) -> KVCache:
        model = self.transformer
        return CallLog(model.config, capacity=capacity, dtype=model.dtype, device=model.device)

    def causal(
        self, tokens: Tensor, start: int, cache: KVCache, *, row: int = 0, num_heads: int = 1
    ) -> Tensor:
        answer = self._answer(cache, (tuple(tokens.tolist()), start, num_heads))
        assert isinstance(answer, Tensor)
        return answer

    def draft(
        self,
        pending: Sequence[int],
        canvas: Tensor,
        start: int,
        cache: KVCache,
        *,
        row: int = 0,
        time: Tensor | None = None,
        belief: Tensor | None = None,
    ) -> Draft:
        assert (row, belief) == (0, None)  # and the time says nothing: there are no ports
        answer = self._answer(cache, ("draft", tuple(pending), tuple(canvas.tolist()), start))
        assert isinstance(answer, Draft)
        return answer

    def _answer(self, cache: KVCache, call: tuple[object, ...]) -> Tensor | Draft:
        assert isinstance(cache, CallLog)
        cache.calls = (*cache.calls, call)
        key = (self.transformer, cache.calls)
        if key not in self.answers:
            real = super().new_cache(cache.capacity)
            for kind in cache.calls:
                self.answers[key] = self._call(real, kind)
        return self.answers[key]

    def _call(self, cache: KVCache, call: tuple[object, ...]) -> Tensor | Draft:
        match call:
            case (tuple() as tokens, int() as start, int() as num_heads):
                return super().causal(torch.tensor(tokens), start, cache, num_heads=num_heads)
            case ("draft", tuple() as pending, tuple() as canvas, int() as start):
                return super().draft(pending, torch.tensor(canvas), start, cache)
        raise ValueError(call)


def exact_law(denoiser: Denoiser, options: Options) -> dict[tuple[int, ...], float]:
    """Return the autoregressive law of the first tokens, one causal forward per continuation."""
    law: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(range(VOCAB_SIZE), repeat=LENGTH):
        sequence = torch.tensor([*PROMPT, *tokens])
        logits = denoiser.causal(sequence[:-1], 0, denoiser.new_cache(len(sequence)), num_heads=LENGTH)
        chosen = sampling_law(logits, options)[torch.arange(LENGTH), torch.tensor(tokens)]
        law[tokens] = float(chosen.prod())
    return law


def p_value(
    denoiser: Denoiser, tokenizer: Tokenizer, options: Options, law: dict[tuple[int, ...], float]
) -> float:
    """Return Pearson's chi-square p-value of many seeds against a law; rare outcomes share one bin."""
    seen: Counter[tuple[int, ...]] = Counter()
    denoiser = turned_into(RememberingDenoiser, denoiser)
    for seed in range(NUM_SEEDS):
        warm = Options(
            options.mode,
            block_length=options.block_length,
            max_tokens=LENGTH,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=seed,
        )
        seen[generate(denoiser, tokenizer, PROMPT, warm).token_ids] += 1
    assert all(law[tokens] > 0 for tokens in seen)
    common = [tokens for tokens, mass in law.items() if mass * NUM_SEEDS >= 5]
    expected = [law[tokens] * NUM_SEEDS for tokens in common]
    observed = [seen[tokens] for tokens in common]
    rest = NUM_SEEDS - sum(expected)
    assert len(common) > 20
    return float(chisquare([*observed, NUM_SEEDS - sum(observed)], [*expected, rest]).pvalue)


@pytest.mark.parametrize(
    ("mode", "logit_shift"), [("ar", True), ("speculative", True), ("speculative", False)]
)
def test_sampled_law(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, mode: Mode, logit_shift: bool
) -> None:
    denoiser = make_denoiser(vocab_size=VOCAB_SIZE, num_layers=1, sharpness=1.5, logit_shift=logit_shift)
    options = Options(mode, block_length=None if mode == "ar" else 3, temperature=0.9, top_k=3)
    assert p_value(denoiser, tokenizer, options, exact_law(denoiser, options)) > 1e-3


def test_a_biased_acceptance_is_found(
    make_denoiser: MakeDenoiser, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = make_denoiser(vocab_size=VOCAB_SIZE, num_layers=1, sharpness=1.5)
    options = Options("speculative", block_length=3, temperature=0.9, top_k=3)
    monkeypatch.setattr(speculation, "residual", lambda verifier_law, draft_law: verifier_law)
    assert p_value(denoiser, tokenizer, options, exact_law(denoiser, options)) < 1e-6
