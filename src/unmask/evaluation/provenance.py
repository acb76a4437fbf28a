"""Where a number comes from: the code, the libraries and the machine that made it."""

import subprocess
from pathlib import Path

import torch

from unmask import __version__
from unmask.runtime import processor_name


def provenance(device: torch.device, dtype: torch.dtype, *, quantize: str | None = None) -> dict[str, object]:
    """Return the versions and the machine; `commit` is None where the package does not run from its repository."""
    return {
        "commit": _commit(),
        "unmask": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "processor": _device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "quantize": quantize,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def _commit() -> str | None:
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
