"""The model hub: a repository's files, fetched by `huggingface_hub` into the cache directory."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from unmask.errors import DownloadError, OfflineError
from unmask.model.catalogue import HubSource
from unmask.model.store import cache_error, hub_folder

_WANTED = ("*.json", "*.safetensors", "*.jinja")
_NOT_WANTED = ("*/*", "consolidated*")  # other formats of the same weights
_PATIENCE_S = 5.0

DEFAULT_ENDPOINT = "https://huggingface.co"


def parse_hub_id(text: str) -> HubSource | None:
    """Return the source that ``org/name`` or ``org/name@revision`` stands for, None when it is neither."""
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", text)
    return HubSource("hub", match[1], match[2] or "main") if match else None


def fetch_hub(source: HubSource, cache: Path, *, offline: bool, progress: Callable[[str], None]) -> Path:
    """Return the folder with a repository's config, weights and tokenizer, fetched where they are not there yet.

    ``HF_ENDPOINT`` and ``HF_TOKEN`` apply. Raise OfflineError, DownloadError or CacheError.
    """
    # Imported here because it takes longer than reading a model that needs no hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    local_only = offline or not _answers(endpoint)
    if not local_only:
        progress(f"fetching {source}")
    try:
        folder = snapshot_download(
            source.repository,
            revision=source.revision,
            cache_dir=hub_folder(cache),
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_NOT_WANTED),
            local_files_only=local_only,
            endpoint=endpoint,
            etag_timeout=_PATIENCE_S,
        )
    except LocalEntryNotFoundError as error:
        raise OfflineError(
            f"{source} is not in {cache} and the hub is not reached",
            "connect to the network, set HF_ENDPOINT to a mirror, or give a folder",
        ) from error
    except GatedRepoError as error:
        raise DownloadError(f"{source} is gated", "accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{source} has no revision {source.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{source} does not exist, or is private", "check the name, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        raise DownloadError(
            f"cannot fetch {source}: {str(error).splitlines()[0]}", "try again later"
        ) from error
    except OSError as error:
        raise cache_error(error, hub_folder(cache)) from error
    except Exception as error:  # of the HTTP library that this version of huggingface_hub uses
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(f"cannot fetch {source}: {reason}", "try again later") from error
    return Path(folder)


def _answers(endpoint: str) -> bool:
    """Say whether somebody takes connections there: huggingface_hub would wait minutes on a dead network."""
    if getproxies():
        return True  # only the proxy can tell
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE_S).close()
    except OSError:
        return False
    return True
