"""Tables of measurements: headings, rows of plain text, numbers to the right."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli.output import print_note
from unmask.cli.run_bar import RunBar
from unmask.errors import FailureError

if TYPE_CHECKING:
    from unmask.evaluation.average import Average

_FILE_COLUMNS = 160


def new_table(title: str, *headings: str) -> Table:
    """Return an empty table; all columns but the first hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text."""
    table.add_row(*(Text(cell) for cell in cells))


def print_tables(*tables: Table) -> None:
    """Print tables, in full width where there is no terminal to fit them to."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_COLUMNS
    for table in tables:
        # A title of its own line: rich would break it to the width of the columns.
        if table.title:
            console.print(Text(str(table.title), "italic"))
            table.title = None
        console.print(table)
        console.print()


def print_report(tables: Iterable[Table], files: Iterable[Path], *remarks: str) -> None:
    """Print what was measured, with remarks and the files that hold it on standard error."""
    print_tables(*tables)
    for remark in (*remarks, f"written: {', '.join(map(str, files))}"):
        print_note(remark)


def shown(value: "Average | None") -> str:
    """Return an average with its standard error, nothing for None."""
    return "" if value is None else str(value)


def with_error(value: "Average") -> str:
    """Return an average to four places, with its standard error where it has one."""
    error = value.standard_error
    return f"{value.mean:.4f}" + ("" if error is None else f" ± {error:.4f}")


def drawn(draw: Callable[[], list[Path]], bar: RunBar) -> list[Path]:
    """Draw pictures and return their paths; where they cannot be drawn, say why."""
    try:
        return draw()
    except FailureError as error:
        bar.print(f"no pictures: {error}")
        return []
