"""Where a number comes from: the code, the libraries and the machine that made it."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from unmask import __version__
from unmask.decoding.language_model import LanguageModel
from unmask.runtime import processor_name


def provenance(device: torch.device, dtype: torch.dtype, *, quantize: str | None = None) -> dict[str, object]:
    """Return the command, the versions and the machine; `commit` is None outside the package's repository."""
    return {
        "command": _command(sys.argv),
        "commit": _commit(),
        "unmask": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "processor": _device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "quantize": quantize,
    }


def provenance_of(model: LanguageModel) -> dict[str, object]:
    """Return the provenance of what a model was measured by."""
    transformer = model.denoiser.transformer
    return provenance(transformer.device, transformer.dtype, quantize=model.quantize)


def timing_conditions(model: LanguageModel) -> dict[str, object]:
    """Return what decides how long a model takes, beside its weights: seconds measured elsewhere are not continued."""
    made = provenance_of(model)
    return {name: made[name] for name in ("device", "processor", "threads")}


def _command(arguments: Sequence[str]) -> str:
    """Return a command line as one would type it: ``unmask ...``, or ``python benchmarks/....py ...``."""
    program = Path(arguments[0])
    words = ["python", "/".join(program.parts[-2:])] if program.suffix == ".py" else [program.name]
    return shlex.join([*(["unmask"] if program.name == "__main__.py" else words), *arguments[1:]])


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
