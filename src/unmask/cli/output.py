"""What commands print: results on standard output, what goes on meanwhile on standard error."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.markup import escape

_CONTROL = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


def print_json(value: object) -> None:
    """Print one JSON document, non-ASCII text as it is."""
    print_line(json.dumps(value, indent=2, ensure_ascii=False))


def print_line(line: str) -> None:
    """Print one line on standard output."""
    write_text(sys.stdout, line + "\n")


def print_note(message: str) -> None:
    """Print a remark on standard error, dim on a terminal."""
    console = Console(stderr=True, highlight=False)
    console.print(message, style="dim", markup=False, soft_wrap=not console.is_terminal)


def write_text(stream: TextIO, text: str) -> None:
    """Write text at once; a character that the stream's encoding lacks is escaped, which beats failing."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def harmless(text: str) -> str:
    """Return text without the control characters by which a model could steer the terminal."""
    return text.translate(_CONTROL)


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that says what goes on: beside a spinner on a terminal, else a line on standard error."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda message: write_text(sys.stderr, f"{message}\n")
        return
    with console.status("loading") as status:
        yield lambda message: status.update(escape(message))
