"""What many tests share: a tiny model in a folder, a way to run commands in process, and a disk that is soon full."""

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import Command, Result

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported


@pytest.fixture
def unmask_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``unmask ARGUMENTS`` in this process, with bytes on standard input if given."""
    from unmask.cli.main import main

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers with a token per byte, a chat template and an adapter, in the hub's layout."""
    from tiny_models import CONFIG, tiny_checkpoint

    from unmask.config import AdapterConfig
    from unmask.model.adapter import Adapter
    from unmask.model.checkpoint import save_checkpoint

    plain = tiny_checkpoint(replace(CONFIG, max_positions=16_384))
    adapter = Adapter(plain.transformer.config, AdapterConfig(rank=2, alpha=2.0)).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.normal_(0.0, 0.1, generator=generator)
    card = replace(plain.card, mask_token_id=CONFIG.vocab_size, block_length=4)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(replace(plain, card=card, adapter=adapter), folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
