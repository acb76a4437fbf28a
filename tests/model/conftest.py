"""Folders and caches to load from, and the default model where it is at hand."""

import json
from pathlib import Path

import pytest
from tiny_models import END, tiny_checkpoint

from unmask.errors import DownloadError
from unmask.model.catalogue import DEFAULT_MODEL
from unmask.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A folder in the hub's layout, without a card of ours."""
    folder = tmp_path / "tiny"
    save_checkpoint(tiny_checkpoint(), folder)
    (folder / "unmask.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, 3]}))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory that `load_checkpoint` uses."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNMASK_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def default_checkpoint() -> Checkpoint:
    """The default model without its adapter, from the user's cache or the network; skips where neither has it."""
    try:
        return load_checkpoint(DEFAULT_MODEL, adapter="none")
    except DownloadError as error:
        pytest.skip(str(error))
