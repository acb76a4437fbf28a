"""``unmask compare``: two reports of one kind side by side."""

from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.arguments import DebugFlag, JsonFlag
from unmask.cli.output import print_json, print_note
from unmask.cli.tables import add_row, new_table, print_tables
from unmask.errors import UsageError


def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A .json that a measuring command wrote.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another one of the same command.")],
    *,
    only: Annotated[
        str, typer.Option(help="Numbers whose names look so; * stands for anything.", metavar="PATTERN")
    ] = "*",
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Compare two reports: every number in both, its change, and the change in standard errors."""
    from unmask.benchmark.compare import compare as compare_records
    from unmask.benchmark.record import shown

    comparison = compare_records(before, after)
    changes = [change for change in comparison.changes if fnmatchcase(change.name, only)]
    if not changes:
        raise UsageError(f"no number is called like {only!r}", "leave --only out to see them all")
    if json:
        print_json({**asdict(comparison), "changes": [asdict(change) for change in changes]})
        return
    conditions = new_table("made differently", "", "before", "after")
    for name, (one, other) in comparison.conditions.items():
        add_row(conditions, name, str(one), str(other))
    table = new_table("measured", "", "before", "after", "ratio", "standard errors")
    for change in changes:
        add_row(
            table,
            change.name,
            shown(change.before),
            shown(change.after),
            "" if change.ratio is None else f"{change.ratio:.3f}",
            "" if change.errors is None else f"{change.errors:+.1f}",
        )
    print_tables(*([conditions] if comparison.conditions else []), table)
    missing = len(comparison.only_before) + len(comparison.only_after)
    if missing:
        print_note(f"{missing} number(s) are in one of the two alone")
