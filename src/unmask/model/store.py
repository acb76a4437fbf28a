"""The cache directory on disk: where things are kept, and how they get there whole or not at all."""

import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unmask.errors import CacheError, CheckpointError, ChecksumError

DEQUANTISED_FORMAT = 1
"""Raise it when what we make of a GGUF file changes, so that copies made before are not read."""

CACHE_REMEDY = "free some space, or set UNMASK_CACHE to another place"

_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_directory(chosen: Path | None = None) -> Path:
    """Return where downloads and dequantised weights go: `chosen`, or $UNMASK_CACHE, or the platform's place."""
    if chosen is not None:
        return chosen.expanduser()
    if own := os.environ.get("UNMASK_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unmask"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "unmask"


def download_folder(cache: Path, sha256: str) -> Path:
    """Return where a downloaded file of this SHA-256 is kept."""
    return cache / "downloads" / sha256[:16]


def dequantised_folder(cache: Path, key: str) -> Path:
    """Return where a GGUF file's dequantised copy is kept; `key` is its SHA-256 or another digest that names it."""
    return cache / "dequantised" / f"{key[:16]}-v{DEQUANTISED_FORMAT}"


def hub_folder(cache: Path) -> Path:
    """Return where `huggingface_hub` keeps what it fetches for us."""
    return cache / "hub"


@contextmanager
def writing_folder(target: Path, *, remedy: str = CACHE_REMEDY) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well, and vanishes when it does not.

    Raise CacheError when the disk is full or not writable. Where another process was first, its folder stays.
    """
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        yield partial
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        raise cache_error(error, target, remedy=remedy) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def cache_error(error: OSError, target: Path, *, remedy: str = CACHE_REMEDY) -> CacheError:
    """Return the one-line error for a write to `target` that failed."""
    reason = "no space left on the disk" if error.errno in _FULL else error.strerror or str(error)
    return CacheError(f"cannot write {target}: {reason}", remedy)


def check_sha256(path: Path, expected: str, *, remedy: str) -> None:
    """Raise ChecksumError, with this remedy, when the SHA-256 of a file is not `expected` (hexadecimal)."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if found != expected:
        raise ChecksumError(f"{path} has SHA-256 {found}, expected {expected}", remedy)


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files below a folder take, links left out; 0 when there is no such folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
