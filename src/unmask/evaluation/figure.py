"""An empty picture; pictures need matplotlib, which the extra `plot` installs."""

from collections.abc import Sequence
from typing import Any

from unmask.errors import FailureError
from unmask.evaluation.average import Average


def new_figure(num_panels: int) -> Any:
    """Return a figure wide enough for so many panels in a row; raise FailureError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FailureError("pictures need matplotlib", "pip install 'unmask[plot]'") from error
    return Figure(figsize=(1 + 4.5 * num_panels, 3.8), layout="constrained")


def error_bars(averages: Sequence[Average | None]) -> list[float]:
    """Return the lengths of the error bars, zero where there is no error to show."""
    return [0.0 if value is None else value.standard_error or 0.0 for value in averages]
