"""The errors unmask raises, as a tree; every branch can be caught by its parent.

UnmaskError
├── UsageError            the caller asked for something that cannot be (exit status 2)
└── FailureError          the request was fine, the world was not (exit status 1)
    ├── CheckpointError   a model, tokenizer or adapter file is missing or broken
    │   ├── ChecksumError     its bytes are not the ones that were promised
    │   └── DownloadError     it could not be fetched
    │       └── OfflineError      ... because no network may be or can be used
    ├── CacheError        the cache directory cannot be written
    ├── ProcessLostError  a process that runs a part of the model has ended
    └── TrainingError     a training run cannot start, go on or be resumed
"""


class UnmaskError(Exception):
    """Say what was given and what is wrong; `remedy` says what to do about it."""

    exit_status = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message} ({remedy})")
        self.message = message
        self.remedy = remedy


class UsageError(UnmaskError):
    """An argument or option is unknown, malformed, or not supported in the chosen mode."""

    exit_status = 2


class FailureError(UnmaskError):
    """A valid request could not be carried out."""


class CheckpointError(FailureError):
    """A model, tokenizer or adapter file is missing, truncated or of an unknown kind."""


class ChecksumError(CheckpointError):
    """A file's SHA-256 differs from the recorded one."""


class DownloadError(CheckpointError):
    """A file could not be fetched from its source."""


class OfflineError(DownloadError):
    """A file is not in the cache and the network cannot or may not be used."""


class CacheError(FailureError):
    """The cache directory cannot be written: permissions, or no space left."""


class ProcessLostError(FailureError):
    """A process that runs a part of the model has ended, so that no other forward can run."""


class TrainingError(FailureError):
    """A training run cannot start, continue or be resumed."""
