"""Two records side by side: what changed, by how much, and whether that is more than chance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unmask.benchmark.record import Record, read_record
from unmask.errors import UsageError
from unmask.evaluation.average import Average


@dataclass(frozen=True)
class Change:
    """One number in two records. `errors`: the difference in its standard errors, None where they are not known.

    The two are taken for independent. Where they share prompts or items, as two runs of a command do, the difference is
    surer than that.
    """

    name: str
    before: Average
    after: Average
    ratio: float | None
    errors: float | None


@dataclass(frozen=True)
class Comparison:
    """All that both records measured; `conditions`: what was not the same, as (before, after)."""

    before: str
    after: str
    conditions: Mapping[str, tuple[object, object]]
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


def compare(before: Path, after: Path) -> Comparison:
    """Compare two records; raise UsageError where they have no number in common."""
    one, other = read_record(before), read_record(after)
    first, second = one.numbers(), other.numbers()
    common = [name for name in first if name in second]
    if not common:
        raise UsageError(
            f"{before} and {after} have no number in common", "compare two records of one command"
        )
    return Comparison(
        str(before),
        str(after),
        _conditions(one, other),
        tuple(_change(name, first[name], second[name]) for name in common),
        tuple(name for name in first if name not in second),
        tuple(name for name in second if name not in first),
    )


def _change(name: str, before: Average, after: Average) -> Change:
    errors = None
    if before.standard_error is not None and after.standard_error is not None:
        spread = math.hypot(before.standard_error, after.standard_error)
        errors = (after.mean - before.mean) / spread if spread else None
    return Change(name, before, after, after.mean / before.mean if before.mean else None, errors)


def _conditions(one: Record, other: Record) -> dict[str, tuple[object, object]]:
    """Return how the two were made, as far as that differs."""
    found: dict[str, tuple[object, object]] = {}
    for part in ("provenance", "config", "settings", "model"):
        first, second = (record.data.get(part, {}) for record in (one, other))
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            for key in dict.fromkeys([*first, *second]):
                if first.get(key) != second.get(key):
                    found[key] = (first.get(key), second.get(key))
    return found
