"""unmask: a toolkit for diffusion language models.

    import unmask

    model = unmask.load("smollm2-135m")
    print(model.generate("Name three rivers.", mode="speculative").text)

Importing the package is instant: torch is imported with the first name below that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from unmask.errors import (
    CacheError,
    CheckpointError,
    ChecksumError,
    DownloadError,
    FailureError,
    OfflineError,
    TrainingError,
    UnmaskError,
    UsageError,
)

if TYPE_CHECKING:
    from unmask.decoding.generation import Generation
    from unmask.decoding.language_model import LanguageModel, load
    from unmask.decoding.options import Options

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "CheckpointError",
    "ChecksumError",
    "DownloadError",
    "FailureError",
    "Generation",
    "LanguageModel",
    "OfflineError",
    "Options",
    "TrainingError",
    "UnmaskError",
    "UsageError",
    "__version__",
    "load",
]

_HOMES = {
    "Generation": "unmask.decoding.generation",
    "LanguageModel": "unmask.decoding.language_model",
    "Options": "unmask.decoding.options",
    "load": "unmask.decoding.language_model",
}


def __getattr__(name: str) -> object:
    """Import a public name that lives behind torch when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
