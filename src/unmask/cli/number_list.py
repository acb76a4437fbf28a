"""Options that are lists of numbers."""

from typing import TypeVar

from unmask.errors import UsageError

Number = TypeVar("Number", int, float)


def read_numbers(text: str, option: str, kind: type[Number]) -> tuple[Number, ...]:
    """Read numbers that are parted by commas; `option` is what a UsageError calls them."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is no list of numbers", f"for example {option} 8,16") from error
