"""What an exception means to the person at the command line: one line, one exit status."""

from dataclasses import dataclass

import typer

from unmask.errors import UnmaskError

INTERRUPTED_STATUS = 130

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
