"""Laws that count what was written, and what a request tells of its log-probabilities."""

import re

import pytest
import torch

from random_denoisers import letter_tokenizer, random_denoiser
from unmask.decoding.generate import generate
from unmask.decoding.options import Options
from unmask.decoding.rules import Threshold
from unmask.decoding.text_law import TextLaw
from unmask.errors import UsageError

PROMPT = [5, 9, 3, 14]


def test_penalties_count_generated_tokens() -> None:
    logits = torch.zeros(2, 4)
    text_law = TextLaw(Options(presence_penalty=1.0, frequency_penalty=0.5), [2, 2, 3])
    assert text_law.after(logits).tolist() == [[0, 0, -2, -1.5]] * 2
    assert text_law.after(logits[0], [3, 0]).tolist() == [-1.5, 0, -2, -2]


def test_a_text_law_without_conditions_is_the_sampling_law() -> None:
    logits, noise = torch.randn(3, 5), torch.rand(3, dtype=torch.float64)
    plain = TextLaw(Options(temperature=1.0), [1, 2])
    turned = TextLaw(Options(temperature=1.0, presence_penalty=1e-300), [1, 2])
    assert not plain.reads_text
    assert turned.reads_text
    for one, other in zip(plain.draw(logits, noise), turned.draw(logits, noise), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", ["ar", "diffusion", "speculative"])
def test_a_strong_penalty_never_repeats_a_token(mode: str) -> None:
    """In diffusion, as long as one forward decides one token: those decided together do not see each other."""
    options = Options(
        mode,  # type: ignore[arg-type]
        max_tokens=12,
        block_length=None if mode == "ar" else 4,
        rule=Threshold(2.0) if mode == "diffusion" else None,
        presence_penalty=1e4,
    )
    done = generate(random_denoiser(num_allowed=14), letter_tokenizer(), PROMPT, options)
    assert len(set(done.token_ids)) == 12


@pytest.mark.parametrize("mode", ["ar", "speculative"])
def test_logprobs_are_the_models_own_whatever_shapes_the_draw(mode: str) -> None:
    denoiser = random_denoiser(num_allowed=5)
    options = Options(
        mode,  # type: ignore[arg-type]
        max_tokens=9,
        temperature=2.0,
        top_k=3,
        logit_bias=((4, 3.0),),
        frequency_penalty=1.0,
        num_logprobs=9,
    )
    done = generate(denoiser, letter_tokenizer(), PROMPT, options)
    text = torch.tensor([*PROMPT, *done.token_ids])
    logits = denoiser.causal(text[:-1], 0, denoiser.new_cache(len(text)), num_heads=9)
    assert done.logprobs is not None
    assert len(done.logprobs) == done.num_tokens
    for token, row, told in zip(done.token_ids, logits.log_softmax(-1), done.logprobs, strict=True):
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [value for _, value in told.top] == sorted((value for _, value in told.top), reverse=True)
        assert len(told.top) == 7  # the others are impossible
        for other, value in told.top:
            assert value == pytest.approx(float(row[other]), abs=1e-4)


def test_a_stop_inside_a_cycle_leaves_no_logprobs_behind_it() -> None:
    denoiser, tokenizer = random_denoiser(num_allowed=3), letter_tokenizer()
    options = Options("speculative", block_length=6, max_tokens=20, num_logprobs=0, stop_token_ids=(3,))
    done = generate(denoiser, tokenizer, PROMPT, options)
    assert done.finish_reason == "stop"
    assert done.logprobs is not None
    assert len(done.logprobs) == done.num_tokens
    assert generate(denoiser, tokenizer, PROMPT, Options()).logprobs is None


def test_refusals() -> None:
    full = random_denoiser()
    with pytest.raises(UsageError, match=re.escape("logit_bias: 99 is outside the vocabulary of 32")):
        generate(full, letter_tokenizer(), PROMPT, Options(logit_bias=((99, 1.0),)))
