"""Types that the tests of the command line share."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]
"""Runs ``unmask ARGUMENTS`` in this process, with the bytes `stdin` on standard input."""
