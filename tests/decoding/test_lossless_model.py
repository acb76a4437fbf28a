"""The real default model writes the same greedy text by speculation as autoregressively."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unmask.decoding.generate import generate
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.model.catalogue import DEFAULT_MODEL

PROMPTS = [entry["text"] for entry in json.loads(Path(__file__).with_name("prompts.json").read_text("utf-8"))]
SLICE = PROMPTS[::7]
BLOCK_LENGTHS = (4, 8, 16)

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with torch.inference_mode():
        yield load(DEFAULT_MODEL)


def check(model: LanguageModel, prompt: str, *, max_tokens: int) -> None:
    """Compare all block lengths with one autoregressive run, stop tokens off so that none ends early."""
    ids = model.encode(prompt)
    free = Options(max_tokens=max_tokens, stop_token_ids=())
    truth = generate(model.denoiser, model.tokenizer, ids, free)
    assert truth.num_tokens == max_tokens
    for block_length in BLOCK_LENGTHS:
        options = replace(free, mode="speculative", block_length=block_length)
        ours = generate(model.denoiser, model.tokenizer, ids, options)
        assert ours.token_ids == truth.token_ids, f"block length {block_length}"
        assert ours.text == truth.text


@pytest.mark.parametrize("prompt", SLICE)
def test_greedy_on_a_slice(model: LanguageModel, prompt: str) -> None:
    check(model, prompt, max_tokens=24)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_on_every_prompt(model: LanguageModel, prompt: str) -> None:
    check(model, prompt, max_tokens=96)


def test_the_answer_ends_at_the_models_own_stop_token(model: LanguageModel) -> None:
    modes = [model.generate("What is 2+2?", mode=mode, max_tokens=64) for mode in ("ar", "speculative")]
    assert modes[0].finish_reason == "stop"
    assert modes[0].token_ids[-1] in model.checkpoint.card.stop_token_ids
    assert (modes[0].text, modes[0].token_ids) == (modes[1].text, modes[1].token_ids)
