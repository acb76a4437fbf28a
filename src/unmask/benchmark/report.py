"""All records of a folder as one page that needs nothing else."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from unmask import __version__
from unmask.benchmark.record import Record, as_table, find_records, names, shown
from unmask.errors import FailureError


@dataclass(frozen=True)
class _Table:
    title: str
    headings: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class _Section:
    """What the page shows of one record."""

    title: str
    command: str | None
    conditions: list[tuple[str, str]]
    tables: list[_Table]
    pictures: list[str]


def write_report(folder: Path, path: Path) -> int:
    """Write a page of all records in a folder; return how many they are. Raise FailureError where it cannot be written.

    Pictures are in the page itself; it loads nothing and runs no scripts.
    """
    records = find_records(folder)
    text = (files("unmask.benchmark") / "report.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    page = template.render(
        version=__version__, sections=[_section(record, folder) for record in records], folder=str(folder)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise FailureError(f"cannot write {path}: {error.strerror}", "name another --out") from error
    return len(records)


def _section(record: Record, folder: Path) -> _Section:
    made = {**record.provenance}
    made.pop("command", None)
    for part in ("config", "settings", "model", "judge"):
        inner = record.data.get(part)
        if isinstance(inner, dict):
            made |= {
                f"{part}: {key}" if part in ("model", "judge") else key: value for key, value in inner.items()
            }
    tables = []
    for key, value in record.data.items():
        if (
            key != "curve"
            and isinstance(value, list)
            and value
            and all(isinstance(item, dict) for item in value)
        ):
            tables += _tables(key.replace("_", " "), value)
    listed = {key for key, value in record.data.items() if isinstance(value, list | str)}
    single = {
        name: shown(value)
        for name, value in record.numbers().items()
        if (parts := name.split(" / "))[0] not in listed and not parts[-1].isdigit()
    }
    tables[:0] = _single(single)
    return _Section(
        str(record.path.relative_to(folder)),
        record.command,
        [(name, "" if value is None else str(value)) for name, value in made.items()],
        tables,
        [_inline(picture) for picture in record.pictures],
    )


def _single(numbers: Mapping[str, str]) -> list[_Table]:
    """Return tables of numbers by name: those whose names differ in the last part alone share a row.

    Lists of numbers are left out, as in tables of items.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, value in numbers.items():
        start, _, end = name.rpartition(" / ")
        rows.setdefault(start, {})[end] = value
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    alone: list[list[str]] = []
    for start, cells in rows.items():
        if start and len(cells) > 1:
            alike.setdefault(tuple(cells), []).append([start, *cells.values()])
        else:
            alone += ([f"{start} / {end}" if start else end, value] for end, value in cells.items())
    tables = [_Table("numbers", ["", "value"], alone)] if alone else []
    return [
        *tables,
        *(_Table(f"numbers: {', '.join(keys)}", ["", *keys], some) for keys, some in alike.items()),
    ]


def _tables(title: str, items: list[dict[str, Any]]) -> list[_Table]:
    """Return a table of items, and one for each item that has its numbers by kind of prompt too."""
    plain = [{key: value for key, value in item.items() if key != "kinds"} for item in items]
    tables = [_Table(title, *as_table(plain))]
    for item, name in zip(items, names(items), strict=True):
        if isinstance(item.get("kinds"), dict):
            kinds = [{"name": kind, **numbers} for kind, numbers in item["kinds"].items()]
            tables.append(_Table(f"{title}: {name}, by kind of prompt", *as_table(kinds)))
    return tables


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
