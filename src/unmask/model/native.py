"""The kernels of kernels.c, compiled once on the user's machine for its processor.

Where there is no C compiler, or what it makes does not work, there are none, and torch's own operations serve.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from unmask.model.store import cache_directory
from unmask.runtime import processor_name

SOURCE = Path(__file__).with_name("kernels.c")

# Sums keep their order (no -ffast-math), and every product that is added to a sum is fused with it, in every batch.
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC")
_PATIENCE_S = 60


@dataclass(frozen=True)
class NativeState:
    """The compiled kernels, or why there are none."""

    library: ctypes.CDLL | None
    reason: str


@cache
def native() -> NativeState:
    """Return the kernels, compiled now unless the cache directory has them; `UNMASK_NATIVE=0` switches them off."""
    if os.environ.get("UNMASK_NATIVE") == "0":
        return NativeState(None, "switched off by UNMASK_NATIVE=0")
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        return NativeState(None, "there is no C compiler (cc or gcc)")
    runtime = _openmp_runtime()
    if runtime is None:
        return NativeState(None, "torch does not run on GNU's OpenMP here")
    try:
        path = cache_directory() / "kernels" / f"{_key(compiler, runtime)}.so"
        if not path.exists():
            _compile(compiler, runtime, path)
        library = ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        return NativeState(None, f"{compiler} failed: {said}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return NativeState(None, str(error))
    return NativeState(library, f"compiled by {compiler} into {path}")


def _openmp_runtime() -> str | None:
    """Return the file of the OpenMP runtime that torch has loaded: with another, two teams of threads would compete."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if "libgomp" in line}
    return min(files) if len(files) == 1 else None


def _key(compiler: str, runtime: str) -> str:
    """Return a name for all that decides what is compiled, and whether it runs."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    abilities = next((line for line in facts if line.startswith(("flags", "Features"))), "")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = (SOURCE.read_text(encoding="utf-8"), *_FLAGS, version, runtime, torch.__version__)
    whole = "\0".join((*parts, platform.machine(), processor_name(), abilities))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _compile(compiler: str, runtime: str, target: Path) -> None:
    """Compile the kernels; readers find the whole file or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}.") as folder:
        made, linked = str(Path(folder, "kernels.o")), Path(folder, "kernels.so")
        link = ["-shared", "-Wl,-z,defs", made, runtime, "-lm", "-o", str(linked)]
        for arguments in ([*_FLAGS, "-c", str(SOURCE), "-o", made], link):
            subprocess.run(
                [compiler, *arguments], capture_output=True, text=True, check=True, timeout=_PATIENCE_S
            )
        linked.replace(target)
