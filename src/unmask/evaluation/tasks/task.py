"""A task: where its items come from, and which of their scores counts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item

Kind = Literal["multiple choice", "last word", "written answer", "program", "infilling"]

Line = dict[str, Any]
"""One line of a packaged file."""


@dataclass(frozen=True)
class Task:
    """A set of items of one kind.

    `split` is the part of the published set, `shots` the number of solved examples in each prompt, `metric` the score
    that counts. `load` returns the items in the order of the set, always the same. `problem` says, by an item's id,
    what it was made from: items of one problem were not drawn independently. Unless given, each is its own.
    """

    kind: Kind
    description: str
    split: str
    num_items: int
    metric: str
    load: Callable[[TaskData], Iterable[Item]]
    shots: int = 0
    problem: Callable[[str], str] = str

    @property
    def runs_programs(self) -> bool:
        """Whether scoring runs what the model wrote."""
        return self.kind in ("program", "infilling")
