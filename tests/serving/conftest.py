"""A tiny model, and a server of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, serving, wait_until

from unmask.decoding.language_model import LanguageModel, load
from unmask.serving.settings import Settings


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> LanguageModel:
    return load(str(tiny_model))


@pytest.fixture(scope="module")
def served(model: LanguageModel) -> Iterator[Served]:
    with serving(model, Settings("tiny", max_choices=8)) as one:
        yield one
        wait_until(lambda: one.is_idle)
