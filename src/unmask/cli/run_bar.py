"""How far a training run is: a bar on a terminal, and a line for everything that is worth one."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unmask.cli.output import harmless

if TYPE_CHECKING:
    from unmask.evaluation.ledger import StageProgress


class RunBar:
    """One bar for each stage of a run, on standard error; without a terminal there are the lines alone."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "RunBar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: float, total: float | None, detail: str) -> None:
        """Move the bar of a stage; one without a total only shows that something goes on."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, detail="")
        self._progress.update(self._tasks[stage], completed=done, detail=detail)

    def follow(self, progress: "StageProgress") -> None:
        """Move the bar of a measurement's stage."""
        done, total = progress.done, progress.total
        self.show(progress.stage, done, total, f"{done} of {total}")

    def print(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(harmless(line), markup=False, soft_wrap=True)
