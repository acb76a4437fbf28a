"""What tests of training share: shards of a small corpus."""

import pytest
from tiny_training import make_shards

from unmask.training.shards import Shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Byte shards of sixty documents, a fifth of them held out."""
    return make_shards(tmp_path_factory.mktemp("corpus"))
