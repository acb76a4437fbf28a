"""What tests of training share: shards of a small corpus, and a model to convert."""

from pathlib import Path

import pytest
from tiny_models import tiny_checkpoint
from tiny_training import make_shards

from unmask.model.checkpoint import save_checkpoint
from unmask.training.shards import Shards


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random autoregressive model."""
    folder = tmp_path_factory.mktemp("models") / "base"
    save_checkpoint(tiny_checkpoint(), folder)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Byte shards of sixty documents, a fifth of them held out."""
    return make_shards(tmp_path_factory.mktemp("corpus"))
