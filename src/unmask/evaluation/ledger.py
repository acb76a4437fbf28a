"""A file of records that grows while work goes on, so that work which was cut off goes on where it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.errors import FailureError


class Ledger:
    """A .jsonl file: `records` holds its lines, `add` appends one; a line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            self.records = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise FailureError(f"{path} is damaged: {error}", "delete it, or name another folder") from error
        os.truncate(path, len(whole))

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record down."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.records.append(dict(record))
