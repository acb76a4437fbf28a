"""A disk that fails at the n-th change that Python makes below a folder, and at all later ones."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

Fault = Literal["killed", "full"]

_GROWING = ("open", "os.mkdir", "os.rename")
_SHRINKING = ("os.remove", "os.rmdir", "os.truncate")


class Killed(BaseException):
    """The end of a process by signal 9: nothing that it would still have done to the disk is done."""


class FailingDisk:
    """What goes wrong from change number `at` on: the process is dead, or whatever takes space finds none.

    The change itself is made by half where it is a file to be written: it is there, with a few bytes of something.
    """

    def __init__(self, folder: Path, fault: Fault, at: int) -> None:
        self.folder, self.fault, self.at, self.count = str(folder), fault, at, 0

    @property
    def has_failed(self) -> bool:
        return self.count > self.at

    def meet(self, event: str, arguments: tuple[object, ...]) -> None:
        """Raise where this audit event is a change that fails."""
        if event not in _GROWING and not (event in _SHRINKING and self.fault == "killed"):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else ""
        # `rmtree` names what it deletes within an open folder.
        if not path or (os.path.isabs(path) and not path.startswith(self.folder)):
            return
        flags = arguments[2] if event == "open" else os.O_CREAT
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.count += 1
        if self.count == self.at + 1 and event == "open":
            _watching.clear()  # what the test does itself is not counted
            with Path(path).open("ab") as file:
                file.write(b'{"half')
            _watching.append(self)
        if self.has_failed:
            if self.fault == "killed":
                raise Killed
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


_watching: list[FailingDisk] = []


@cache
def _install() -> None:
    """Listen to what Python does to files; for good, as there is no way to take an audit hook back."""

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        for disk in tuple(_watching):
            disk.meet(event, arguments)

    sys.addaudithook(hear)


@contextmanager
def failing_disk(folder: Path, fault: Fault, at: int) -> Iterator[FailingDisk]:
    """Let the disk fail within the block, from its change number `at` (from 0) on."""
    _install()
    disk = FailingDisk(folder, fault, at)
    _watching.append(disk)
    try:
        yield disk
    finally:
        _watching.clear()
