"""The folder that is all the state of a run: taken by one configuration, and whole whenever the run is cut off."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from unmask.errors import TrainingError, UsageError
from unmask.model.run_checkpoints import checkpoint_name, checkpoints

SETTINGS_FILE = "settings.json"
METRICS_FILE = "metrics.jsonl"

PARTIAL = ".partial"
"""Ending of a file or folder that is being written; what still has it when a run begins was cut off."""


class RunFolder:
    """A folder that one run owns; `kind` is what error messages call the run."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind

    def claim(self, name: str, config: str, parse: Callable[[str], Mapping[str, Any]]) -> None:
        """Take the folder by writing the file `name`, or find that it is taken by this very configuration.

        In a folder that was taken before, delete what was being written when that run was killed. Raise UsageError when
        it holds anything else, TrainingError when it cannot be used.
        """
        file = self.path / name
        try:
            if file.exists():
                self._refuse_changes(parse(file.read_text(encoding="utf-8")), parse(config))
                for partial in self.path.glob(f"*{PARTIAL}"):
                    _remove(partial)
                return
            self.path.mkdir(parents=True, exist_ok=True)
            if any(path.name != f"{name}{PARTIAL}" for path in self.path.iterdir()):
                raise UsageError(f"{self.path} is not empty and holds no {self.kind}", "name another folder")
            with self.replacing(name) as partial:
                partial.write_text(config, encoding="utf-8")
        except ValueError as error:
            raise UsageError(f"{file} is broken: {error}", "name another folder") from error
        except OSError as error:
            raise TrainingError(
                f"cannot use {self.path}: {error}", "name a folder that can be written"
            ) from error

    def claim_settings(self, settings: Mapping[str, object]) -> None:
        """Take the folder as `claim` does, by settings that JSON holds."""
        self.claim(SETTINGS_FILE, _lines(settings), json.loads)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Turn what goes wrong while files are written into a TrainingError."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
            raise TrainingError(
                f"cannot save to {self.path}: {error}", "free some space and run it again"
            ) from error

    @contextmanager
    def reading(self, checkpoint: Path) -> Iterator[None]:
        """Turn what goes wrong while a checkpoint is read into a TrainingError, which says what is left without it."""
        try:
            yield
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            others = [path.name for path in self.checkpoints() if path != checkpoint]
            rest = f"the run goes on from {others[-1]}" if others else "the run begins anew"
            raise TrainingError(
                f"{checkpoint} cannot be read: {error}", f"delete the checkpoint, and {rest}"
            ) from error

    def checkpoints(self) -> list[Path]:
        """Return the folders of the checkpoints that are there, the latest last."""
        return checkpoints(self.path)

    @contextmanager
    def checkpoint(self, step: int, *, keep: int = 1) -> Iterator[Path]:
        """Yield the path of a checkpoint to write, which appears whole or not at all; then delete all but `keep`."""
        with self.saving():
            with self.replacing(checkpoint_name(step)) as partial:
                yield partial
            for old in self.checkpoints()[:-keep]:
                self.discard(old)

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yield the path of a file or folder to write, which then appears as `name`, whole or not at all."""
        partial, target = self.path / f"{name}{PARTIAL}", self.path / name
        _remove(partial)
        try:
            yield partial
            os.replace(partial, target)
        except BaseException:
            _remove(partial)  # a full disk needs the space
            raise

    def discard(self, path: Path) -> None:
        """Delete a folder; one that is cut off half-way can no longer be taken for a whole one."""
        doomed = path.with_name(path.name + PARTIAL)
        _remove(doomed)
        os.replace(path, doomed)
        _remove(doomed)

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file, whole or not at all."""
        with self.saving(), self.replacing(name) as partial:
            partial.write_text(_lines(value), encoding="utf-8")

    def append(self, name: str, record: Mapping[str, object]) -> None:
        """Add one JSON line to a file."""
        with self.saving(), (self.path / name).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def rewind(self, name: str, step: int | None) -> None:
        """Drop the lines of a file that were written after `step`; all of them for None."""
        file = self.path / name
        with self.saving():
            if step is None:
                file.unlink(missing_ok=True)
            elif file.exists():
                whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
                with self.replacing(name) as partial:
                    partial.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))

    def _refuse_changes(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        before, after = dict(_flat(old)), dict(_flat(new))
        for key in {**after, **before}:
            if before.get(key) != after.get(key):
                raise UsageError(
                    f"{self.path} holds a {self.kind} with {key}={before.get(key)}, not {after.get(key)}",
                    "give the same options to continue it, or another folder",
                )


def _lines(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value with its dotted key."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
