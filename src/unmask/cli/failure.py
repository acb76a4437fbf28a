"""What an exception means to the person at the command line: one line, one exit status."""

import errno
from dataclasses import dataclass

import typer

from unmask.errors import UnmaskError

INTERRUPTED_STATUS = 130

_LESS_MEMORY = (
    "close other programs, or ask for less: --cache-mib, --token-budget, a smaller batch or shorter texts, "
    "--dtype bfloat16, --quantize int8"
)
_INTERRUPTED, _INTERNAL = "Interrupted", "InternalError"


@dataclass(frozen=True)
class Failure:
    """A command that did not do what it was asked to; `kind` is for programs, the rest for people."""

    kind: str
    message: str
    remedy: str | None
    exit_status: int

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Return what an exception that left a command amounts to."""
        match error:
            case UnmaskError():
                return cls(type(error).__name__, error.message, error.remedy, error.exit_status)
            case typer.TyperException():
                message = error.format_message().rstrip(".")
                return cls("UsageError", message, "see --help", error.exit_code)
            case KeyboardInterrupt():
                return cls(_INTERRUPTED, "stopped by Ctrl-C", None, INTERRUPTED_STATUS)
            case _ if _is_out_of_memory(error):
                reason = str(error).rpartition("DefaultCPUAllocator: ")[2].partition(". Error code")[0]
                return cls("OutOfMemory", ": ".join(filter(None, ["out of memory", reason])), _LESS_MEMORY, 1)
            case OSError() if error.strerror is not None:
                place = "" if error.filename is None else f"{error.filename}: "
                return cls(type(error).__name__, f"{place}{error.strerror}", None, 1)
            case _:
                return cls(_INTERNAL, f"{type(error).__name__}: {error}", "run again with --debug", 1)

    @property
    def line(self) -> str:
        """The whole of it in one line, for standard error."""
        label = {_INTERRUPTED: "", _INTERNAL: "internal error: "}.get(self.kind, "error: ")
        remedy = "" if self.remedy is None else f" ({self.remedy})"
        return " ".join(f"{label}{self.message}{remedy}".split())

    def to_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints."""
        return {
            "error": {
                "type": self.kind,
                "message": self.message,
                "remedy": self.remedy,
                "exit_status": self.exit_status,
            }
        }


def _is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, without torch: its error on CPUs is any RuntimeError, on GPUs one of its own."""
    match error:
        case MemoryError():
            return True
        case OSError():
            return error.errno == errno.ENOMEM
        case RuntimeError():
            return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return False
