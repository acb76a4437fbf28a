"""What most tests of decoding ask for."""

from collections.abc import Callable

import pytest
from hypothesis import settings

from random_denoisers import CountingDenoiser, letter_tokenizer, prompt_of, random_denoiser
from unmask.decoding.generation import Generation
from unmask.tokenizer import Tokenizer

settings.register_profile("unmask", deadline=None)  # a busy machine is not a failure
settings.load_profile("unmask")

MakeDenoiser = Callable[..., CountingDenoiser]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture(scope="session")
def make_denoiser() -> MakeDenoiser:
    return random_denoiser


@pytest.fixture(scope="session")
def essence() -> Callable[[Generation], tuple[object, ...]]:
    """Return what two runs that decide the same must share."""
    return lambda generation: (generation.token_ids, generation.text, generation.finish_reason)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return [prompt_of(seed, 1 + seed % 9) for seed in range(20)]
