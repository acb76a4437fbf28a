"""The JSON records that measuring commands write, found in folders and read as numbers by name."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import FailureError, UsageError
from unmask.evaluation.average import Average

_NAMES = ("task", "name", "way", "setting", "series", "source", "model", "block_length", "shape")
"""Fields by which an item of a list is called, the first that it has."""

_CASE = ("mode", "number_format", "concurrency")
"""Fields by which an item without a name is called, all that it has."""

_NOT_MEASURED = ("provenance", "config", "settings", "model", "curve", "machine", "prompts", "runs", "crowds")
"""Fields that say how a measurement was made, or hold the single runs that others sum up."""


@dataclass(frozen=True)
class Record:
    """One report: its file, what it holds, and the pictures beside it."""

    path: Path
    data: Mapping[str, Any]
    pictures: tuple[Path, ...]

    @property
    def command(self) -> str | None:
        """The command that made it, where it says so."""
        command = self.provenance.get("command") or self.data.get("command")
        return command if isinstance(command, str) else None

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Versions and machine, which older records call `machine`; empty for a record without them."""
        for name in ("provenance", "machine"):
            found = self.data.get(name)
            if isinstance(found, Mapping) and "command" in found:
                return found
        return {}

    def numbers(self) -> dict[str, Average]:
        """Return all that was measured, by name; a number without a standard error is an average of one sample."""
        measured = {key: value for key, value in self.data.items() if key not in _NOT_MEASURED}
        return {" / ".join(path): value for path, value in _numbers(measured, ())}


def read_record(path: Path) -> Record:
    """Read one record; raise FailureError for a file that is none, UsageError for one that is not there."""
    if not path.is_file():
        raise UsageError(f"{path} is no file", "give the .json that a measuring command wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FailureError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise FailureError(f"{path} holds no record of a measurement", "give another file")
    pictures = [picture for picture in sorted(path.parent.glob("*.png")) if _belongs(picture, path)]
    return Record(path, data, tuple(pictures))


def find_records(folder: Path) -> tuple[Record, ...]:
    """Return every record in a folder and the folders in it; raise UsageError where there is none.

    A record is a JSON object that says where its numbers come from: it has a `provenance`, or names its `command`.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "give one that holds reports")
    records = (read_record(path) for path in sorted(folder.rglob("*.json")) if _is_object(path))
    found = tuple(record for record in records if record.provenance or record.command)
    if not found:
        raise UsageError(
            f"{folder} holds no report of a measurement", "run unmask eval, sol, frontier or roofline"
        )
    return found


def _is_object(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(1) == "{"


def _belongs(picture: Path, record: Path) -> bool:
    """Tell whether a picture goes with a record: by its name, or because no other record has its folder."""
    others = [path for path in record.parent.glob("*.json") if path.stem not in (record.stem, "settings")]
    return picture.stem == record.stem or not others


def _numbers(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Average]]:
    if isinstance(value, Mapping):
        if {"mean", "standard_error", "num_samples"} <= set(value):
            yield path, Average(value["mean"], value["standard_error"], value["num_samples"])
            return
        for key, inner in value.items():
            yield from _numbers(inner, (*path, str(key)))
    elif isinstance(value, list):
        for name, inner in zip(names(value), value, strict=True):
            yield from _numbers(inner, (*path, name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, Average(float(value), None, 1)


def names(items: Sequence[object]) -> list[str]:
    """Return what the items of a list are called; where two are called alike, all have their number too."""
    found = [_name(item, number) for number, item in enumerate(items)]
    if len(set(found)) == len(found):
        return found
    return [f"{name} {number}" for number, name in enumerate(found)]


def _name(item: object, number: int) -> str:
    if isinstance(item, Mapping):
        for key in _NAMES:
            if key in item:
                inner = item[key]
                if isinstance(inner, Mapping):
                    return str(inner.get("name") or ", ".join(str(part) for part in inner.values()))
                return str(inner)
        case = [str(item[key]) for key in _CASE if key in item]
        if case:
            return " ".join(case)
    return str(number)


def as_table(items: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return alike items as headings and rows of text, the longer side down; lists of numbers are left out."""
    columns = {}
    for name, item in zip(names(items), items, strict=True):
        measured = (("/".join(path), value) for path, value in _numbers(item, ()) if not path[-1].isdigit())
        columns[name] = {key: shown(value) for key, value in measured}
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    if len(keys) > len(columns):
        return ["", *columns], [[key, *(column.get(key, "") for column in columns.values())] for key in keys]
    return ["", *keys], [[name, *(column.get(key, "") for key in keys)] for name, column in columns.items()]


def shown(value: Average) -> str:
    """Return a number to four digits; with a standard error to the two digits of that, and no further than it says."""
    error = value.standard_error
    if not error:
        number = f"{value.mean:,.4g}" if abs(value.mean) < 10_000 else f"{value.mean:,.0f}"
        return number if error is None else f"{number} ± 0"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value.mean:,.{places}f} ± {error:,.{places}f}"
