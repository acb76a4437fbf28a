"""Running model-written programs: one locked-down process each, with a time limit."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from unmask.evaluation.tasks import confinement

KERNEL_LAYERS = ("landlock", "seccomp")
"""The layers of `confinement` that a program cannot go round; not every system has them."""

_REPORT_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What one program may use; `seconds` are of the clock, the rest is enforced by the kernel.

    Processor time is what ends a long program, so that scores do not depend on what else the machine does; the clock
    is for those that sleep. Memory is address space, which macOS does not limit.
    """

    seconds: float = 40.0
    cpu_seconds: int = 10
    memory_bytes: int = 2**30
    file_bytes: int = 2**24


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end, and if not, why; `layers` name what confined it."""

    passed: bool
    reason: str
    layers: tuple[str, ...] = ()


DEFAULT_LIMITS = Limits()


def run_program(source: str, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Run a Python program in a process of its own: an empty folder, no network, no processes, nothing to read.

    It has the standard library, and passes if it ends without an exception; `sys.exit` counts as one.
    """
    kernel_limits = {key: value for key, value in asdict(limits).items() if key != "seconds"}
    message = json.dumps(kernel_limits).encode() + b"\n" + source.encode("utf-8", "surrogatepass")
    with (
        tempfile.TemporaryDirectory(prefix="unmask-program-") as folder,
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(Path(confinement.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        ) as process,
    ):
        try:
            report, _ = process.communicate(message, timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"not done after {limits.seconds:g} s")
        finally:
            # The process, and on platforms where it may start others, those too.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return _outcome(report[:_REPORT_BYTES], process.returncode)


@cache
def confinement_layers() -> tuple[str, ...]:
    """Return what confines programs on this machine."""
    return run_program("").layers


def _outcome(report: bytes, status: int) -> Outcome:
    try:
        fields = json.loads(report)
        return Outcome(fields["passed"] is True, str(fields["reason"]), tuple(fields["layers"]))
    except (ValueError, KeyError, TypeError):
        ended = f"killed by {signal.Signals(-status).name}" if status < 0 else "ended before its end"
        return Outcome(False, ended)
