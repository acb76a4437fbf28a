"""A file of records that grows while work goes on, so that work which was cut off goes on where it was."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from unmask.errors import FailureError
from unmask.training.run_folder import RunFolder

Record = TypeVar("Record")
Job = TypeVar("Job")


@dataclass(frozen=True)
class StageProgress:
    """`done` of `total` of a stage of a measurement."""

    stage: str
    done: int
    total: int


Observer = Callable[[StageProgress], None]
"""Is told how far a measurement is."""


class Ledger(Generic[Record]):
    """A .jsonl file of dataclasses: `records` holds its lines, `add` appends one; a line that was cut off is dropped.

    FailureError for lines that are no records of the kind.
    """

    def __init__(self, folder: RunFolder, name: str, kind: type[Record]) -> None:
        self._folder, self._name, self._adapter = folder, name, TypeAdapter(kind)
        self.records: list[Record] = []
        path = folder.path / name
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            self.records = [self._adapter.validate_python(json.loads(line)) for line in whole.splitlines()]
        except ValueError as error:  # json's and pydantic's
            reason = str(error).splitlines()[0]
            raise FailureError(f"{path} is damaged: {reason}", "delete it, or name another folder") from error
        os.truncate(path, len(whole))

    def add(self, record: Record) -> None:
        """Write a record down."""
        fields = self._adapter.dump_python(record, mode="json")
        self._folder.append(self._name, fields)
        # As it will be read again, so that a report does not depend on where the work was cut off.
        self.records.append(self._adapter.validate_python(fields))

    def fill(
        self, jobs: Sequence[Job], measure: Callable[[Job], Record], stage: str, observe: Observer
    ) -> list[Record]:
        """Return the records of all jobs, in their order; those that are there are not measured again."""
        for done in range(len(self.records), len(jobs)):
            observe(StageProgress(stage, done, len(jobs)))
            self.add(measure(jobs[done]))
        observe(StageProgress(stage, len(jobs), len(jobs)))
        return self.records[: len(jobs)]
