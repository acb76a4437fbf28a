"""``unmask report``: all measurements of a folder as one page."""

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.arguments import DebugFlag, JsonFlag
from unmask.cli.output import print_json, print_note


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where reports lie, at any depth.")],
    *,
    out: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE")] = Path("report.html"),
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Write one self-contained HTML page of all reports in a folder: tables, pictures, commands, machine."""
    from unmask.benchmark.report import write_report

    count = write_report(folder, out)
    if json:
        print_json({"page": str(out), "num_records": count})
    else:
        print_note(f"{count} record(s): {out}")
